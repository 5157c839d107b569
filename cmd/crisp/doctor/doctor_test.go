package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/runtime/host"
)

// says requires a finding with a status and a text, and what to do unless it is OK.
func says(t *testing.T, found []Finding, status Status, text string) {
	t.Helper()
	for _, f := range found {
		if f.Status == status && strings.Contains(f.Text, text) && (status == OK || f.Todo != "") {
			return
		}
	}
	t.Errorf("no %s with %q in %+v", status, text, found)
}

func TestSysctls(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	n := &Node{Facts: host.Facts{UserNS: host.Yes}, Files: fstest.MapFS{
		"proc/sys/net/ipv4/ip_forward": file("1\n"), "proc/sys/fs/inotify/max_user_instances": file("8192\n"), "proc/sys/user/max_user_namespaces": file("0\n"),
	}}
	found := sysctls(t.Context(), n)
	if len(found) != 1 {
		t.Errorf("findings %+v", found)
	}
	says(t, found, Warn, "user.max_user_namespaces is 0")

	n.Facts.UserNS = host.No
	says(t, sysctls(t.Context(), n), OK, "as pods need them")
}

func TestKernel(t *testing.T) {
	says(t, kernel(t.Context(), &Node{Facts: host.Facts{Kernel: host.Version{Major: 4, Minor: 19}}}), Fail, "5.14 or later")
	found := kernel(t.Context(), &Node{Facts: host.Facts{Kernel: host.Version{Major: 6, Minor: 1}, Overlay: host.No, SeccompActions: []string{"errno"}, Problems: []error{errors.New("odd")}}})
	says(t, found, Fail, "overlayfs")
	says(t, found, Warn, "ID-mapped mounts of tmpfs")
	says(t, kernel(t.Context(), &Node{Facts: host.Facts{SeccompActions: []string{"errno"}}}), OK, "what pods need")
}

func TestNetworkConfiguration(t *testing.T) {
	dir := t.TempDir()
	n := &Node{Config: &config.Config{CNIConfDir: dir, CNIBinDirs: []string{t.TempDir()}}}
	says(t, cniConfiguration(t.Context(), n), Fail, "only pods in the node's network")
	n.Config.DefaultNetwork = true
	says(t, cniConfiguration(t.Context(), n), OK, "crisp's own network")

	file := filepath.Join(dir, "10-a.conflist")
	if err := os.WriteFile(file, []byte(`{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"crisp-net"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	found := cniConfiguration(t.Context(), n)
	if len(found) != 1 {
		t.Errorf("findings %+v", found)
	}
	says(t, found, Fail, `plugin "bridge"`)
	if err := os.WriteFile(filepath.Join(n.Config.CNIBinDirs[0], "bridge"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	says(t, cniConfiguration(t.Context(), n), OK, "network a of "+file)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, cniConfiguration(t.Context(), n), Fail, file)
}

// TestRegistries asks those that are configured and those of images, mirrors too.
func TestRegistries(t *testing.T) {
	answering := func(status int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" || r.Header.Get("Authorization") != "" {
				t.Errorf("asked for %s with %q", r.URL.Path, r.Header.Get("Authorization"))
			}
			w.WriteHeader(status)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	dirs := t.TempDir()
	configure := func(dir, text string) {
		t.Helper()
		if err := errors.Join(os.Mkdir(filepath.Join(dirs, dir), 0o755), os.WriteFile(filepath.Join(dirs, dir, "hosts.toml"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	const none = "http://127.0.0.1:1"
	host := func(url string) string {
		return fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", url)
	}
	configure("good.example", fmt.Sprintf("server = %q\n%s", answering(401), host(answering(200))))
	configure("half.example_5000_", fmt.Sprintf("server = %q\n%s", answering(200), host(none)))
	configure("dead.example", fmt.Sprintf("server = %q\n", none))
	configure("odd.example", fmt.Sprintf("server = %q\n", answering(500)))
	configure("broken.example", "server = 7\n")
	configure("_default", "")
	image := strings.TrimPrefix(answering(200), "http://")

	n := &Node{Config: &config.Config{RegistryConfigDirs: []string{dirs, "/nowhere"}}, now: func() (admin.State, error) { return admin.State{Registries: []string{image}}, nil }}
	found := registries(t.Context(), n)
	if len(found) != 6 {
		t.Errorf("findings %+v", found)
	}
	says(t, found, OK, "good.example answers (http://127.0.0.1:")
	says(t, found, OK, image+" answers")
	says(t, found, Warn, "of half.example:5000 only http://127.0.0.1:")
	says(t, found, Warn, "no host of dead.example answers: "+none)
	says(t, found, Warn, "no host of odd.example answers")
	says(t, found, Fail, "images of broken.example cannot be pulled")

	n = &Node{Config: &config.Config{}, now: func() (admin.State, error) { return admin.State{}, errors.New("none") }}
	says(t, registries(t.Context(), n), OK, "none is configured")
}

func TestDaemon(t *testing.T) {
	for want, n := range map[Status]*Node{
		Warn: {now: func() (admin.State, error) { return admin.State{}, errors.New("none") }},
		Fail: {now: func() (admin.State, error) { return admin.State{Ready: true, Keeper: "gone"}, nil }},
		OK:   {Config: &config.Config{}, now: func() (admin.State, error) { return admin.State{Ready: true}, nil }},
	} {
		says(t, daemon(t.Context(), n), want, "")
	}
}

// TestRepair fixes only what is known to be left, and reports what fails.
func TestRepair(t *testing.T) {
	id := strings.Repeat("a", 64)
	state := admin.State{Ready: true}
	n := &Node{State: func(context.Context) (admin.State, error) { return state, nil }}
	removed := 0
	l := leftover{"cgroup", "/x", id, func(context.Context) error { removed++; return nil }}

	f := l.finding(n)
	f.repair(t.Context())
	if removed != 1 || f.Status != OK || !f.Fixed || f.Todo != "" {
		t.Errorf("%d removed: %+v", removed, f)
	}

	state.Pods = []admin.Pod{{ID: "b", Containers: []admin.Container{{ID: id}}}}
	f = l.finding(n)
	f.repair(t.Context())
	if removed != 1 || f.Status != Fail || f.Fixed {
		t.Errorf("what belongs to a container now: %d removed: %+v", removed, f)
	}
	if k := knownTo(state); !k.has(id[:20]) || k.has("c") {
		t.Errorf("known are %v", k)
	}

	if f := (leftover{kind: "layer", id: id}).finding(n); f.fix != nil || !strings.Contains(f.Todo, "restart the daemon") {
		t.Errorf("what only the daemon removes: %+v", f)
	}
	if Worst([]Finding{{Status: OK}, {Status: Warn}}) != Warn || Worst([]Finding{{Status: Fail}, {Status: Warn}}) != Fail || Worst(nil) != OK {
		t.Error("the worst is wrong")
	}
}
