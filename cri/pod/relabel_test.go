package pod

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/cri/spec/selinux"
	"crisp/test/testkit"
)

// The volume of an image is below the root, to which a link may lead.
func TestRelabelBelowALinkedRoot(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	data, root := filepath.Join(dir, "data"), filepath.Join(dir, "root")
	for _, err := range []error{os.Mkdir(data, 0o755), os.Symlink(data, root)} {
		if err != nil {
			t.Fatal(err)
		}
	}

	s, err := openStore(filepath.Join(root, "pods"), "boot")
	if err != nil {
		t.Fatal(err)
	}

	const volume = "c1/volumes/0"
	if err := os.MkdirAll(filepath.Join(data, "pods/p1", volume), 0o755); err != nil {
		t.Fatal(err)
	}

	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	if err := selinux.LabelTree(t.Context(), filepath.Join(s.podDir("p1"), volume), label); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 256)
	if n, err := unix.Getxattr(filepath.Join(data, "pods/p1", volume), "security.selinux", got); err != nil || string(got[:n]) != label {
		t.Errorf("the volume has label %q, %v", got[:max(n, 0)], err)
	}
}
