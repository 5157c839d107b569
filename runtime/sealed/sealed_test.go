package sealed

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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
