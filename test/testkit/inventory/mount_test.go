package inventory_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
	"crisp/test/testkit/inventory"
)

func TestTakeSeesMount(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	before := inventory.Take()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}

	once := inventory.Take()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}

	scope := inventory.Scope{Marks: []string{dir}}
	both, second := before.Settle(0, scope), once.Settle(0, scope)
	for range 2 {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}

	if len(both) != 2 || len(second) != 1 {
		t.Errorf("want two mounts on %s to be seen, and one since the first, got %q and %q", dir, both, second)
	}
}
