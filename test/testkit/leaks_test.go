package testkit

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInventoryMissing(t *testing.T) {
	in := inventory{shared: map[string]bool{"mount /a": true}, own: map[string]bool{"descriptor 3 x": true}}
	after := inventory{
		shared: map[string]bool{"mount /a": true, "mount /tmp/TestX1/001/m": true, "cgroup /sys/fs/cgroup/other": true},
		own:    map[string]bool{"process 7 sleep": true},
	}
	t.Setenv("CRISP_STRICT", "")
	if got, want := in.missing(after, []string{"TestX1"}), []string{"mount /tmp/TestX1/001/m", "process 7 sleep"}; !slices.Equal(got, want) {
		t.Errorf("with marks: got %q, want %q", got, want)
	}
	t.Setenv("CRISP_STRICT", "1")
	if got, want := in.missing(after, nil), []string{"cgroup /sys/fs/cgroup/other", "mount /tmp/TestX1/001/m", "process 7 sleep"}; !slices.Equal(got, want) {
		t.Errorf("strict: got %q, want %q", got, want)
	}
}

func TestInventorySeesDescriptorAndProcess(t *testing.T) {
	Leaks(t)
	before := takeInventory()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(before.missing(takeInventory(), nil), "\n")
	if !strings.Contains(left, "/dev/null") || !strings.Contains(left, "sleep") {
		t.Errorf("want the open file and the child to be seen, got:\n%s", left)
	}
	_ = f.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestInventorySeesMount(t *testing.T) {
	Root(t)
	Leaks(t)
	dir := t.TempDir()
	before := takeInventory()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	left := before.missing(takeInventory(), []string{Name(t)})
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || !strings.Contains(left[0], dir) {
		t.Errorf("want the mount on %s to be seen, got %q", dir, left)
	}
}

func TestName(t *testing.T) {
	if a, b := Name(t), Name(t); a != b || !strings.HasPrefix(a, "TestName") {
		t.Errorf("got names %q and %q, want one name that starts with the test's", a, b)
	}
}
