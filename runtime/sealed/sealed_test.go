package sealed

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("the program"), 0o755); err != nil {
		t.Fatal(err)
	}

	f, err := Program("crisp-test", path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	got := make([]byte, 20)
	n, err := f.ReadAt(got, 0)
	if string(got[:n]) != "the program" {
		t.Errorf("got %q, %v", got[:n], err)
	}

	if _, err := f.WriteAt([]byte("another"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write to it: got %v, want EPERM", err)
	}
	src, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()

	if !Is(f) || Is(src) {
		t.Errorf("sealed: %t, its source: %t; want true, false", Is(f), Is(src))
	}
	if _, err := Program("crisp-test", path+".missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: got %v", err)
	}
}

// TestSealBusy seals a file that is busy for a moment: a mapping simulates the
// references that the kernel takes to reclaim or to migrate pages.
func TestSealBusy(t *testing.T) {
	fd, err := unix.MemfdCreate("crisp-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}

	f := os.NewFile(uintptr(fd), "crisp-test")
	defer f.Close()
	if _, err := f.WriteString("text"); err != nil {
		t.Fatal(err)
	}

	held, err := unix.Mmap(fd, 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); !errors.Is(err, unix.EBUSY) {
		t.Errorf("seal a busy file: got %v, want EBUSY", err)
	}
	released := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { released <- unix.Munmap(held) })

	if err := Seal(fd); err != nil || !Is(f) {
		t.Errorf("got %v, sealed: %t", err, Is(f))
	}
	if err := <-released; err != nil {
		t.Error(err)
	}
}
