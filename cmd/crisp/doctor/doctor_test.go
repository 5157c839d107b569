package doctor

import (
	"context"
	"errors"
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

func TestDaemon(t *testing.T) {
	for want, n := range map[Status]*Node{
		Warn: {State: func(context.Context) (admin.State, error) { return admin.State{}, errors.New("none") }},
		Fail: {State: func(context.Context) (admin.State, error) { return admin.State{Ready: true, Keeper: "gone"}, nil }},
		OK:   {Config: &config.Config{}, State: func(context.Context) (admin.State, error) { return admin.State{Ready: true}, nil }},
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
