package rootpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const raceTime = 700 * time.Millisecond

// exchange swaps two names continuously until the returned func is called.
func exchange(t *testing.T, a, b string) (stop func()) {
	t.Helper()
	quit, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}

			err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			if err != nil {
				<-quit
				done <- err
				return
			}
		}
	}()

	return func() {
		t.Helper()
		close(quit)
		if err := <-done; err != nil {
			t.Errorf("exchange %s and %s: %v", a, b, err)
		}
	}
}

// A directory on the path is exchanged with a link that leads out of the root.
func TestMkdirAllAgainstExchange(t *testing.T) {
	root, dir, outside := tree(t)
	must(t, os.MkdirAll(dir+"/a/real", 0o755))
	must(t, os.Symlink(outside, dir+"/a/link"))
	stop := exchange(t, dir+"/a/real", dir+"/a/link")
	defer stop()

	made, failed := 0, 0
	for i, end := 0, time.Now().Add(raceTime); time.Now().Before(end); i++ {
		d, err := MkdirAll(root, fmt.Sprintf("/a/real/x%d/../y/z", i), 0o755, Owner{})
		if err == nil {
			made++
			d.Close()
		} else {
			failed++
		}

		if err := CreateTarget(root, fmt.Sprintf("/a/real/file%d", i), false, Owner{}); err != nil {
			failed++
		}
	}

	t.Logf("%d made, %d failed", made, failed)
	if made == 0 {
		t.Error("the racer stopped every attempt")
	}
	// The cleanup of tree checks that nothing was created outside.
}

// A file is exchanged with a FIFO and with a link to a file of the host.
func TestReadFileAgainstExchange(t *testing.T) {
	root, dir, _ := tree(t)
	must(t, os.Mkdir(dir+"/etc", 0o755))
	must(t, os.WriteFile(dir+"/etc/passwd", []byte("inside"), 0o644))
	must(t, os.Symlink("../../secret/passwd", dir+"/etc/swap"))

	secret := filepath.Join(filepath.Dir(dir), "secret")
	must(t, os.Mkdir(secret, 0o755))
	must(t, os.WriteFile(secret+"/passwd", []byte("secret"), 0o644))
	must(t, unix.Mkfifo(dir+"/fifo", 0o644))
	defer exchange(t, dir+"/etc/passwd", dir+"/etc/swap")()
	defer exchange(t, dir+"/etc/passwd", dir+"/fifo")()

	ok := 0
	for end := time.Now().Add(raceTime); time.Now().Before(end); {
		data, err := ReadFile(root, "etc/passwd", 100)
		switch {
		case err == nil && string(data) == "inside":
			ok++
		case err == nil:
			t.Fatalf("read %q", data)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotRegular):
			t.Fatal(err)
		}
	}

	if ok == 0 {
		t.Error("the racer stopped every attempt")
	}
}

// A directory inside the tree to remove is exchanged with a link to a
// directory that must stay.
func TestRemoveAllAgainstExchange(t *testing.T) {
	base := t.TempDir()
	root := openDir(t, base)
	must(t, os.Mkdir(base+"/keep", 0o755))
	must(t, os.WriteFile(base+"/keep/file", nil, 0o644))

	for end := time.Now().Add(raceTime); time.Now().Before(end); {
		must(t, os.MkdirAll(base+"/gone/real", 0o755))
		for i := range 20 {
			must(t, os.WriteFile(fmt.Sprintf("%s/gone/real/%d", base, i), nil, 0o644))
		}

		must(t, os.Symlink("../keep", base+"/gone/link"))
		quit, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-quit:
					return
				default:
					_ = unix.Renameat2(unix.AT_FDCWD, base+"/gone/real", unix.AT_FDCWD, base+"/gone/link", unix.RENAME_EXCHANGE)
				}
			}
		}()

		err := RemoveAll(t.Context(), root, "gone")
		close(quit)
		<-done
		if err != nil {
			must(t, RemoveAll(t.Context(), root, "gone"))
		}

		if _, err := os.Lstat(base + "/keep/file"); err != nil {
			t.Fatalf("removed through a link: %v", err)
		}
	}
}
