package e2e

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestArchives moves images between nodes without a registry.
func TestArchives(t *testing.T) {
	from := newNode(t, lab.Options{})
	from.pull(t, nginx)
	dir := t.TempDir()
	archive := filepath.Join(dir, "images.tar")
	if out := from.crisp(t, "images", "export", "-o", archive, busybox, nginx); out != "" {
		t.Errorf("export printed %q", out)
	}
	from.refused(t, 1, "file exists", "images", "export", "-o", archive, busybox)
	from.refused(t, 6, "there is no image", "images", "export", "-o", filepath.Join(dir, "none.tar"), "none")
	if _, err := os.Stat(filepath.Join(dir, "none.tar")); err == nil {
		t.Error("an export that failed has left a file")
	}
	ids := from.crisp(t, "images", "list", "-q")
	packed := filepath.Join(dir, "images.tar.gz")
	if err := os.WriteFile(packed, zipped(t, archive), 0o600); err != nil {
		t.Fatal(err)
	}

	to := lonely(t)
	for name, from := range map[string]string{"file": archive, "gzip": packed, "directory": unpacked(t, archive), "stdin": "-"} {
		cmd := to.command(t, "images", "import", from)
		if from == "-" {
			f, err := os.Open(packed)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.Stdin = f
		}
		if s := finish(t, cmd); s.code != 0 || s.out != busybox+"\n"+nginx+"\n" {
			t.Errorf("import of a %s: %+v", name, s)
		}
		if got := to.crisp(t, "images", "list", "-q"); got != ids {
			t.Errorf("after import of a %s there are %q, want %q", name, got, ids)
		}
		to.crisp(t, "rmi", nginx)
	}
	junk := filepath.Join(dir, "junk.tar")
	if err := os.WriteFile(junk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	to.refused(t, 1, "neither an OCI layout", "images", "import", junk)
	to.refused(t, 1, "no such file", "images", "import", junk+".none")
	testPodsOfImports(t, to)
}

// lonely is a node without images and without a registry, next to another one.
func lonely(t *testing.T) *node {
	t.Helper()
	return &node{testkit.Daemon(t, lab.Options{Second: true, NoRegistry: true})}
}

// testPodsOfImports runs an imported image on a node without a registry, also after a
// restart, and removes what no pod uses.
func testPodsOfImports(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	if got := p.output(t, "echo imported"); got != "imported\n" {
		t.Errorf("the image printed %q", got)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	n.begin(t)
	c := p.start(t, named("app"))
	if st := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}); st.GetImage().GetPinned() || len(st.GetImage().GetRepoTags()) != 1 {
		t.Errorf("the image is %+v", st.GetImage())
	}

	wantLines(t, n.crisp(t, "images", "gc", "--dry-run", "--age", "0s"), "^IMAGE +FREES +ID$")
	c.stop(t, 0)
	if out := n.crisp(t, "images", "gc", "--dry-run", "--age", "0s"); strings.Contains(out, busybox) {
		t.Errorf("an image that a container has would be removed: %s", out)
	}
	c.remove(t)
	if out := n.crisp(t, "images", "gc"); strings.Contains(out, busybox) {
		t.Errorf("an image that was just found is removed: %s", out)
	}
	wantLines(t, n.crisp(t, "images", "gc", "--dry-run", "--age", "0s"), "^"+busybox+` +\d.* `)
	if got := n.crisp(t, "images", "list", "-q"); got == "" {
		t.Error("a dry run has removed an image")
	}
	wantLines(t, n.crisp(t, "images", "gc", "--age", "0s"), "^"+busybox+` +\d.* `)
	if got := n.crisp(t, "images", "list", "-q"); got != "" {
		t.Errorf("there are still %q", got)
	}
	p.remove(t)
}

// TestImportFolder starts a pod of an image that was put into a folder, and that
// kubelet must not collect.
func TestImportFolder(t *testing.T) {
	from := newNode(t, lab.Options{})
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	from.crisp(t, "images", "export", "-o", archive, busybox)

	n := lonely(t)
	dir := n.path("root", "import")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.tar"), data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox.tar"), data, 0o600); err != nil {
		t.Fatal(err)
	}

	image := func() *runtimeapi.Image {
		return call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}).GetImage()
	}
	eventually(t, "the image", func() bool { return image() != nil })
	if !image().GetPinned() {
		t.Errorf("the image is %+v", image())
	}
	eventually(t, "a word on the bad one", func() bool { return strings.Contains(n.Log(), "it is ignored until it changes") })
	if out := n.crisp(t, "images", "gc", "--age", "0s"); strings.Contains(out, busybox) {
		t.Errorf("gc removed %s", out)
	}
	p := n.pod(t)
	if got := p.output(t, "echo here"); got != "here\n" {
		t.Errorf("the image printed %q", got)
	}
	p.remove(t)
}

// zipped is a file, compressed.
func zipped(t *testing.T, path string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(z, f); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked is a directory with the content of an archive.
func unpacked(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "tar", "-xf", path, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}
