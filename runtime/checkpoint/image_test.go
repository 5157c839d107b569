package checkpoint

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPackHostile packs directories as an image may have them.
func TestPackHostile(t *testing.T) {
	for name, make := range map[string]func(dir string) error{
		"no images":               func(dir string) error { return os.Remove(filepath.Join(dir, ImagesDir)) },
		"a link":                  func(dir string) error { return os.Symlink("/etc/shadow", filepath.Join(dir, configFile)) },
		"a link among images":     func(dir string) error { return os.Symlink("/etc/shadow", filepath.Join(dir, ImagesDir, "a.img")) },
		"a pipe":                  func(dir string) error { return unix.Mkfifo(filepath.Join(dir, configFile), 0o600) },
		"a directory":             func(dir string) error { return os.Mkdir(filepath.Join(dir, "more"), 0o700) },
		"a directory of images":   func(dir string) error { return os.Mkdir(filepath.Join(dir, ImagesDir, "more"), 0o700) },
		"a link for the images":   func(dir string) error { return relink(filepath.Join(dir, ImagesDir), "/etc") },
		"a file for the images":   func(dir string) error { return refile(filepath.Join(dir, ImagesDir)) },
		"a loop for the images":   func(dir string) error { return relink(filepath.Join(dir, ImagesDir), ImagesDir) },
		"a socket for a dump":     func(dir string) error { return unix.Mknod(filepath.Join(dir, specFile), unix.S_IFSOCK|0o600, 0) },
		"links that lead outside": func(dir string) error { return os.Symlink("../../../../etc/passwd", filepath.Join(dir, specFile)) },
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, ImagesDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := make(dir); err != nil {
			t.Fatal(err)
		}

		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := Pack(t.Context(), f, io.Discard); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
		f.Close()
	}
}

func relink(name, target string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

func refile(name string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return f.Close()
}
