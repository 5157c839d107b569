package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func TestCheckFileSystem(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	oneString := stacked(t).OneString
	usable := t.TempDir()
	if err := CheckFileSystem(t.Context(), usable, oneString); err != nil {
		t.Errorf("the file system of this test's directory: %v", err)
	}
	if left, err := os.ReadDir(usable); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	// A node in a container has its root file system on an overlay.
	o := stacked(t)
	m, err := o.Mount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()

	at := t.TempDir()
	const here = unix.MOVE_MOUNT_F_EMPTY_PATH
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, at, here); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})

	err = CheckFileSystem(t.Context(), at, oneString)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), at+", which is on overlay") {
		t.Errorf("on an overlay: %v, want %v with its name", err, ErrUnsupported)
	}

	if err := CheckFileSystem(t.Context(), filepath.Join(usable, "none"), oneString); !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrUnsupported) {
		t.Errorf("missing directory: %v, want %v", err, os.ErrNotExist)
	}

	// A full disk passes.
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "nr_inodes=3"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := CheckFileSystem(t.Context(), full, oneString); !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrUnsupported) {
		t.Errorf("file system without inodes: %v, want %v alone", err, unix.ENOSPC)
	}
}

func TestEntryType(t *testing.T) {
	dir := t.TempDir()
	if err := checkEntryTypes(dir); err != nil {
		t.Error(err)
	}

	entry := func(kind byte, name string) []byte {
		b := make([]byte, 19, 32)
		b = append(b, name...)
		b = append(b, 0, 0)
		b[16], b[18] = byte(len(b)), kind
		return b
	}
	data := append(entry(unix.DT_DIR, "a"), entry(unix.DT_UNKNOWN, "entry")...)
	if kind, found := entryType(data, "entry"); !found || kind != unix.DT_UNKNOWN {
		t.Errorf("type %d, found %v, want an unknown type", kind, found)
	}
	if _, found := entryType(data[:len(data)-1], "entry"); found {
		t.Error("an entry that is cut off was found")
	}
	if _, found := entryType(make([]byte, 64), "entry"); found {
		t.Error("an entry was found in zeros")
	}
}
