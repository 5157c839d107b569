package rootpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chain creates depth nested directories called name below dir, and a file and
// an empty directory in every bush-th. It returns a descriptor of the
// innermost.
func chain(t *testing.T, dir, name string, depth, bush int) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range depth {
		must(t, unix.Mkdirat(fd, name, 0o000))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		if bush > 0 && i%bush == 0 {
			must(t, unix.Mkdirat(next, "empty", 0o700))
			must(t, unix.Mknodat(next, "file", unix.S_IFREG|0o200, 0))
		}
		unix.Close(fd)
		fd = next
	}

	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

// limitDescriptors leaves room for n more descriptors until the test ends.
func limitDescriptors(t *testing.T, n int) {
	t.Helper()
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(openDescriptors(t) + n), Max: old.Max}))
	t.Cleanup(func() { must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)) })
}

// A container may nest directories until the disk is full, with the longest
// names, and without permissions.
func TestRemoveAllVeryDeep(t *testing.T) {
	for _, tt := range []struct {
		name  string
		depth int
		bush  int
	}{
		{"d", 30_000, 0},
		{strings.Repeat("n", 255), 3_000, 0},
		{"bushy", 5_000, 7},
	} {
		t.Run(fmt.Sprintf("%.5s%d", tt.name, tt.depth), func(t *testing.T) {
			root, dir, _ := tree(t)
			must(t, os.Mkdir(dir+"/volume", 0o755))
			must(t, os.Mkdir(dir+"/volume/"+movedName(1), 0o755)) // the first name that moveUp would use
			chain(t, dir+"/volume", tt.name, tt.depth, tt.bush).Close()

			before := openDescriptors(t)
			limitDescriptors(t, maxDepth+16)
			start := time.Now()
			if err := RemoveAll(t.Context(), root, "volume"); err != nil {
				t.Fatal(err)
			}

			t.Logf("%d levels in %v", tt.depth, time.Since(start))
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			if after := openDescriptors(t); after > before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// Time is proportional to the entries, also of one directory.
func TestRemoveAllWide(t *testing.T) {
	root, dir, _ := tree(t)
	took := func(n int) time.Duration {
		must(t, os.Mkdir(dir+"/wide", 0o755))
		d := openDir(t, dir+"/wide")
		for i := range n {
			must(t, unix.Mknodat(int(d.Fd()), fmt.Sprintf("%0200d", i), unix.S_IFREG|0o600, 0))
		}
		start := time.Now()
		must(t, RemoveAll(t.Context(), root, "wide"))
		return time.Since(start)
	}

	few, many := took(5_000), took(50_000)
	t.Logf("5,000 files in %v, 50,000 in %v", few, many)
	if many > 60*few {
		t.Errorf("5,000 files in %v, 50,000 in %v", few, many)
	}
}

func TestRemoveAllCancelled(t *testing.T) {
	root, dir, _ := tree(t)
	must(t, os.Mkdir(dir+"/volume", 0o755))
	chain(t, dir+"/volume", "d", 500, 1).Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the daemon ends")
	cancel(cause)
	if err := RemoveAll(ctx, root, "volume"); !errors.Is(err, cause) {
		t.Errorf("cancelled removal: %v", err)
	}
	must(t, RemoveAll(t.Context(), root, "volume"))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A directory that is moved out of the tree while it is being emptied keeps
// files that others put there.
func TestRemoveAllAgainstMovingAway(t *testing.T) {
	root, dir, _ := tree(t)
	must(t, os.Mkdir(dir+"/kept", 0o755))
	moved := 0
	for end := time.Now().Add(2 * raceTime); time.Now().Before(end); {
		must(t, os.MkdirAll(dir+"/gone/a/b", 0o755))
		for i := range readBatch + 10 {
			must(t, os.WriteFile(fmt.Sprintf("%s/gone/a/b/%d", dir, i), nil, 0o600))
		}

		done := make(chan error)
		go func() {
			for {
				if _, missing := os.Lstat(dir + "/gone/a/b/7"); missing != nil {
					break
				}
			}
			done <- os.Rename(dir+"/gone/a", dir+"/kept/a")
		}()

		err := RemoveAll(t.Context(), root, "gone")
		if rerr := <-done; rerr == nil {
			moved++
			if err != nil && !errors.Is(err, ErrBusy) {
				t.Fatalf("removal of a tree that is taken apart: %v", err)
			}
			if _, err := os.Stat(dir + "/kept/a"); err != nil {
				t.Fatalf("a directory was removed where it had been moved to: %v", err)
			}
		} else if !errors.Is(rerr, fs.ErrNotExist) {
			t.Fatal(rerr)
		}

		must(t, RemoveAll(t.Context(), root, "gone"))
		must(t, RemoveAll(t.Context(), openDir(t, dir+"/kept"), "a"))
	}
	t.Logf("moved away %d times", moved)
}

// TestRemoveAllTogether has several removals of one tree at a time, each of which finds
// directories gone that it has open.
func TestRemoveAllTogether(t *testing.T) {
	const several, rounds = 4, 50
	for range rounds {
		top := t.TempDir()
		for i := range 20 {
			if err := os.MkdirAll(fmt.Sprintf("%s/tree/%d/a/b/c", top, i), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		dir := openDir(t, top)

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var all sync.WaitGroup
		for range several {
			all.Go(func() {
				if err := RemoveAll(ctx, dir, "tree"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		cancel()
		if t.Failed() {
			return
		}
	}
}
