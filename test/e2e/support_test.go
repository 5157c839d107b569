package e2e

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestDf compares what is used of the disk with what was written.
func TestDf(t *testing.T) {
	n := newNode(t, lab.Options{})
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"))
	c.sh(t, "dd if=/dev/zero of=/file bs=1M count=3; sync; seq 1000 >/proc/1/fd/1")
	eventually(t, "the log", func() bool { return strings.Contains(slurp(c.logFile()), " 1000\n") })

	out := n.crisp(t, "df", "-o", `go-template={{.blobs}} {{.layers}} {{len .images}} {{range .containers}}{{.name}} {{.writable}} {{.logs}}{{end}}`)
	f := strings.Fields(out)
	if len(f) != 6 || f[0] == "0" || f[1] == "0" || f[2] != "1" || f[3] != "e2e/web/app" || len(f[4]) != len("3145728") || f[5] < "10000" {
		t.Errorf("the disk is used by %q", out)
	}
	wantLines(t, n.crisp(t, "df", "-o", "wide"), "^WHAT ", `^images, compressed +\d.*1 images$`, `^writable layers +3\.\d MiB +1 containers$`, `^logs +\d`, "^free ",
		"^IMAGE +EXCLUSIVE +SHARED$", "^"+busybox+` +\d.* +0 B$`, "^CONTAINER ", `^e2e/web/app +3\.\d MiB `)
}

// TestSupport requires an archive without secrets, which are in every place where a
// pod can have some, with a daemon and without.
func TestSupport(t *testing.T) {
	const secret = "s3cr3t-v4lue"
	n := newNode(t, lab.Options{Config: "log_level = \"trace\"\n"})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	p := n.pod(t, podNamed("web"), func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations, c.Labels = map[string]string{"a": secret}, map[string]string{"l": secret}
	})
	c := p.start(t, named("app"), mount(file, "/run/token"), func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte(secret)}}
		c.Annotations = map[string]string{"a": secret}
		c.Args = []string{secret}
		c.Command = []string{"sh", "-c", "cat /run/token; sleep 1000"}
	})
	c.sh(t, ": "+secret)
	_, err := try(t, n.Images.PullImage, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "registry.k8s.io/none:1"}, Auth: &runtimeapi.AuthConfig{Username: "user", Password: secret},
	})
	if err == nil {
		t.Error("an image that does not exist was pulled")
	}
	if strings.Contains(n.Log(), secret) {
		t.Error("the log has the secret")
	}

	files := n.support(t)
	for name, want := range map[string]string{
		"versions.txt": "crisp ", "configuration.json": n.path("root"), "doctor.json": `"check"`, "state.json": c.id, "disk.json": busybox, "goroutines.txt": "goroutine ", "mounts.txt": " / ",
	} {
		if !strings.Contains(files["crisp-support/"+name], want) {
			t.Errorf("%s has no %q: %.2000s", name, want, files["crisp-support/"+name])
		}
	}
	for name, text := range files {
		if strings.Contains(text, secret) {
			t.Errorf("%s has the secret", name)
		}
	}

	n.Kill()
	if files := n.support(t); !strings.Contains(files["crisp-support/state.json.error"], "admin.sock") || files["crisp-support/doctor.json"] == "" {
		t.Errorf("without a daemon: %q", files["crisp-support/state.json.error"])
	}
	n.begin(t)
}

// support returns the files of an archive.
func (n *node) support(t *testing.T) map[string]string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "support.tar.gz")
	args := []string{"support", "--root", n.path("root"), "--output", path}
	if out := n.crisp(t, args...); out != path+"\n" {
		t.Errorf("printed %q", out)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the archive is %v, %v", st, err)
	}
	n.refused(t, 1, "file exists", args...)

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for name, e := range testkit.Entries(t, z) {
		files[name] = string(e.Data)
	}
	return files
}
