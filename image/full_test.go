package image_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/test/testkit"
)

// TestDiskRunsOut pulls onto file systems that have no room, no inodes or no
// leave to write. The error says what is missing, what was there stays,
// nothing half-made stays, and with room again the same pull succeeds.
func TestDiskRunsOut(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("small", "v1", ocispec.ImageConfig{}, pack(t, text("a", "1")))
	var files []file
	for i := range 3000 {
		files = append(files, text(fmt.Sprintf("d%d/f%d", i/100, i), random(3000)))
	}

	r.push("big", "v1", ocispec.ImageConfig{}, pack(t, text("x", random(200_000))), pack(t, files...))
	small, big := r.Host+"/small:v1", r.Host+"/big:v1"
	remount := func(options string, flags uintptr) func(string) error {
		return func(dir string) (err error) {
			// It is busy while what the pull has left is still being written or removed.
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if err = unix.Mount("", dir, "", unix.MS_REMOUNT|flags, options); !errors.Is(err, unix.EBUSY) {
					return err
				}
			}
			return err
		}
	}

	for _, c := range []struct {
		name          string
		mount         func(t *testing.T, dir string)
		exhaust, heal func(dir string) error
		want          error
	}{
		{"no room", tmpfs("size=4m"), nil, remount("size=200m", 0), unix.ENOSPC},
		{"no inodes", tmpfs("nr_inodes=500"), nil, remount("nr_inodes=20000", 0), unix.ENOSPC},
		{"read-only", tmpfs(""), remount("", unix.MS_RDONLY), remount("", 0), unix.EROFS},
		{"no room on ext4", ext4, ballast, func(dir string) error { return os.Remove(filepath.Join(dir, "ballast")) }, unix.ENOSPC},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.mount(t, dir)
			root := filepath.Join(dir, "image")
			s := reopen(t, root)
			defer s.Close()

			pull(t, s, small)
			if c.exhaust != nil {
				if err := c.exhaust(dir); err != nil {
					t.Fatal(err)
				}
			}

			_, err := s.Pull(t.Context(), big, nil)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), big) {
				t.Errorf("error %v, want %v", err, c.want)
			}

			if _, err := s.Get(small); err != nil {
				t.Errorf("an image that was there: %v", err)
			}
			if _, err := s.Get(big); !errors.Is(err, image.ErrNotFound) {
				t.Errorf("the image half pulled: %v", err)
			}

			if c.heal != nil {
				if err := c.heal(dir); err != nil {
					t.Fatal(err)
				}
			}

			waitTidy(t, root)
			pull(t, s, big)
			for _, ref := range []string{small, big} {
				if err := s.Remove(t.Context(), ref); err != nil {
					t.Error(err)
				}
			}

			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if left := orphans(root); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// waitTidy waits until nothing is left to remove.
func waitTidy(t *testing.T, root string) {
	t.Helper()
	waitFor(t, "what is not needed any more to go", func() bool {
		left, err := os.ReadDir(filepath.Join(root, "tmp"))
		return err == nil && len(left) == 0
	})
}

func tmpfs(options string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			t.Fatal(err)
		}
		unmountLater(t, dir)
	}
}

func ext4(t *testing.T, dir string) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	for _, args := range [][]string{
		{"truncate", "-s", "64M", disk}, {"mkfs.ext4", "-q", "-F", "-m", "0", disk}, {"mount", "-o", "loop", disk, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			testkit.Skip(t, "a loop device", fmt.Sprintf("%q: %v: %s", args, err, out))
		}
	}
	unmountLater(t, dir)
}

// unmountLater unmounts when the services of the test are closed.
func unmountLater(t *testing.T, dir string) {
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// ballast fills a file system but for 4 MB.
func ballast(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(4<<20)), f.Close())
}
