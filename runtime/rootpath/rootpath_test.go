package rootpath

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree creates an empty root with a neighbour that must stay empty.
func tree(t *testing.T) (root *os.File, dir, outside string) {
	t.Helper()
	base := t.TempDir()
	dir, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
			t.Errorf("files outside the root: %v, %v", names, err)
		}
	})

	return openDir(t, dir), dir, outside
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenConfines(t *testing.T) {
	root, dir, outside := tree(t)
	must(t, os.MkdirAll(dir+"/etc/deep", 0o755))
	must(t, os.WriteFile(dir+"/etc/passwd", []byte("inside"), 0o644))
	must(t, os.Symlink("/etc/passwd", dir+"/absolute"))
	must(t, os.Symlink("../../../../etc/passwd", dir+"/etc/deep/relative"))
	must(t, os.Symlink("absolute", dir+"/chain"))
	must(t, os.Symlink("loop", dir+"/loop"))
	must(t, os.Symlink("nowhere", dir+"/dangling"))
	must(t, os.Symlink(outside, dir+"/out"))

	for _, path := range []string{
		"etc/passwd", "/etc/passwd", "absolute", "etc/deep/relative", "chain",
		"../../etc/passwd", "etc/../../../etc/passwd", "//etc//./passwd",
	} {
		data, err := ReadFile(root, path, 100)
		if err != nil || string(data) != "inside" {
			t.Errorf("ReadFile(%q) = %q, %v", path, data, err)
		}
	}

	for path, want := range map[string]error{
		"loop":                             unix.ELOOP,
		"dangling":                         fs.ErrNotExist,
		"out":                              fs.ErrNotExist,
		"":                                 fs.ErrNotExist,
		"etc/a\x00":                        unix.EINVAL,
		strings.Repeat("a/", unix.PathMax): unix.ENAMETOOLONG,
	} {
		if f, err := Open(root, path, unix.O_RDONLY); !errors.Is(err, want) {
			t.Errorf("Open(%.20q) = %v, %v, want %v", path, f, err, want)
		}
	}

	for _, flags := range []int{unix.O_CREAT | unix.O_WRONLY, unix.O_TMPFILE | unix.O_RDWR} {
		if f, err := Open(root, "etc", flags); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Open with flags %#x = %v, %v, want EINVAL", flags, f, err)
		}
	}
}

func TestOpenSetsCloexec(t *testing.T) {
	root, _, _ := tree(t)
	f, err := Open(root, "/", unix.O_PATH)
	must(t, err)
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Fatalf("descriptor flags %#x, %v", flags, err)
	}
}

// Procfs serves as the hostile tree: its magic links lead out of any root.
func TestMagicLinksRefused(t *testing.T) {
	proc := openDir(t, "/proc")
	for _, path := range []string{"self/root", "self/cwd", "self/root/etc/passwd", "self/exe", "self/fd/0", "self/ns/mnt"} {
		if f, err := Open(proc, path, unix.O_PATH); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Open(%q) = %v, %v, want ELOOP", path, f, err)
		}
		if f, err := MkdirAll(proc, path+"/new", 0o755, Owner{}); !errors.Is(err, unix.ELOOP) {
			t.Errorf("MkdirAll(%q) = %v, %v, want ELOOP", path, f, err)
		}
	}

	f, err := Open(proc, "self/root", unix.O_PATH|unix.O_NOFOLLOW)
	must(t, err)
	defer f.Close()
	m := maker{root: proc}
	must(t, m.reopen())
	defer m.cur.Close()

	if err := m.follow(f); !errors.Is(err, unix.ELOOP) {
		t.Errorf("following a link of procfs by its text: %v, want ELOOP", err)
	}
}

func TestOpenRegularRefuses(t *testing.T) {
	root, dir, _ := tree(t)
	must(t, unix.Mkfifo(dir+"/fifo", 0o644))
	must(t, os.Symlink("fifo", dir+"/link"))
	must(t, os.Mkdir(dir+"/dir", 0o755))
	must(t, os.WriteFile(dir+"/sparse", nil, 0o644))
	must(t, os.Truncate(dir+"/sparse", 5<<30))
	must(t, os.WriteFile(dir+"/exact", bytes.Repeat([]byte("x"), 64), 0o644))

	start := time.Now()
	for path, want := range map[string]error{
		"fifo": ErrNotRegular, "link": ErrNotRegular, "dir": ErrNotRegular, "sparse": ErrTooLarge,
	} {
		if f, err := OpenRegular(root, path, 64); !errors.Is(err, want) {
			t.Errorf("OpenRegular(%q) = %v, %v, want %v", path, f, err, want)
		}
	}

	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("refusals took %v", d)
	}
	if data, err := ReadFile(root, "exact", 64); err != nil || len(data) != 64 {
		t.Errorf("ReadFile at the limit = %d bytes, %v", len(data), err)
	}

	if _, err := ReadFile(root, "exact", 63); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ReadFile above the limit: %v", err)
	}
}

// Files of procfs report size 0, like a file that grows after the check.
func TestReadFileCountsBytes(t *testing.T) {
	proc := openDir(t, "/proc")
	if _, err := ReadFile(proc, "self/status", 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ReadFile of a file larger than its st_size: %v, want ErrTooLarge", err)
	}
}

func TestCreateFile(t *testing.T) {
	root, dir, outside := tree(t)
	must(t, os.Symlink(outside+"/made", dir+"/dangling"))
	if f, err := CreateFile(root, "dangling", 0o644); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateFile on a dangling link = %v, %v", f, err)
	}

	for _, name := range []string{"", ".", "..", "a/b", "../outside/x", "/x"} {
		if f, err := CreateFile(root, name, 0o644); !errors.Is(err, ErrName) {
			t.Errorf("CreateFile(%q) = %v, %v, want ErrName", name, f, err)
		}
	}

	f, err := CreateFile(root, "new", 0o600)
	must(t, err)
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
}

func TestMkdirAll(t *testing.T) {
	for _, tt := range []struct {
		name, path string
		links      map[string]string
		want       string // the directory that must exist
		err        error
	}{
		{name: "root", path: "/", want: "."},
		{name: "empty", path: "", want: "."},
		{name: "plain", path: "/a/b/c", want: "a/b/c"},
		{name: "dot dot", path: "a/../../../b", want: "b"},
		{name: "absolute link", path: "link/x", links: map[string]string{"link": "/have"}, want: "have/x"},
		{name: "link above the root", path: "link/x", links: map[string]string{"link": "../../../have"}, want: "have/x"},
		{name: "dangling link", path: "link/x", links: map[string]string{"link": "/new/dir"}, want: "new/dir/x"},
		{name: "dangling leaf", path: "have/link", links: map[string]string{"have/link": "../new"}, want: "new"},
		{name: "dangling chain", path: "l1", links: map[string]string{"l1": "l2", "l2": "/have/l3", "have/l3": "deep/down"}, want: "have/deep/down"},
		{name: "link with dot dot", path: "link/y", links: map[string]string{"link": "x/../../z"}, want: "z/y"},
		{name: "loop", path: "l1/x", links: map[string]string{"l1": "l2", "l2": "l1"}, err: unix.ELOOP},
		{name: "loop after a missing part", path: "new/../l1", links: map[string]string{"l1": "l1/x"}, err: unix.ELOOP},
		{name: "file on the way", path: "file/x", err: unix.ENOTDIR},
		{name: "file on the way to a missing part", path: "new/../file/x", err: unix.ENOTDIR},
		{name: "file at the end", path: "new/../file", err: unix.ENOTDIR},
		{name: "long name", path: strings.Repeat("a", 256), err: unix.ENAMETOOLONG},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, dir, _ := tree(t)
			must(t, os.Mkdir(dir+"/have", 0o755))
			must(t, os.WriteFile(dir+"/file", nil, 0o644))
			for link, target := range tt.links {
				must(t, os.Symlink(target, filepath.Join(dir, link)))
			}

			f, err := MkdirAll(root, tt.path, 0o755, Owner{})
			if !errors.Is(err, tt.err) {
				t.Fatalf("MkdirAll: %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			defer f.Close()

			got, err1 := f.Stat()
			want, err2 := os.Lstat(filepath.Join(dir, tt.want))
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}

			if !got.IsDir() || !os.SameFile(got, want) {
				t.Errorf("MkdirAll opened something other than %s", tt.want)
			}
		})
	}
}

func TestMkdirAllBoundsLinks(t *testing.T) {
	root, dir, _ := tree(t)
	for i := range 60 {
		must(t, os.Symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("%s/l%d", dir, i)))
	}
	if f, err := MkdirAll(root, "missing/../l0", 0o755, Owner{}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("MkdirAll over 60 links = %v, %v, want ELOOP", f, err)
	}
	f, err := MkdirAll(root, "l25", 0o755, Owner{})
	must(t, err)
	f.Close()
}

func TestMkdirAllLeavesNoDescriptors(t *testing.T) {
	root, dir, _ := tree(t)
	must(t, os.Symlink("loop/x", dir+"/loop"))
	before := openDescriptors(t)
	for i := range 50 {
		if f, err := MkdirAll(root, fmt.Sprintf("d%d/../e/../f", i), 0o755, Owner{}); err == nil {
			f.Close()
		}
		if _, err := MkdirAll(root, "new/../loop", 0o755, Owner{}); err == nil {
			t.Fatal("loop followed")
		}
	}

	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestCreateTarget(t *testing.T) {
	root, dir, _ := tree(t)
	must(t, os.Mkdir(dir+"/etc", 0o755))
	must(t, os.Mkdir(dir+"/isdir", 0o755))
	must(t, unix.Mkfifo(dir+"/fifo", 0o644))
	must(t, os.Symlink("/run/resolv.conf", dir+"/etc/resolv.conf"))

	for _, tt := range []struct {
		path  string
		dir   bool
		want  string
		isDir bool
	}{
		{path: "/etc/hosts", want: "etc/hosts"},
		{path: "/etc/resolv.conf", want: "run/resolv.conf"},
		{path: "/var/lib/data", dir: true, want: "var/lib/data", isDir: true},
		{path: "/var/lib/file", want: "var/lib/file"},
		{path: "/isdir", want: "isdir", isDir: true},
		{path: "/", dir: true, want: ".", isDir: true},
	} {
		for range 2 { // what exists is accepted
			if err := CreateTarget(root, tt.path, tt.dir, Owner{}); err != nil {
				t.Errorf("CreateTarget(%q): %v", tt.path, err)
			}
		}

		st, err := os.Lstat(filepath.Join(dir, tt.want))
		if err != nil || st.IsDir() != tt.isDir {
			t.Errorf("%s: %v, %v", tt.want, st, err)
		}
	}

	if err := CreateTarget(root, "fifo", false, Owner{}); err != nil {
		t.Errorf("CreateTarget on a FIFO: %v", err)
	}
	if err := CreateTarget(root, "fifo/x", false, Owner{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("CreateTarget below a FIFO: %v, want ENOTDIR", err)
	}
}

func TestRemoveAll(t *testing.T) {
	root, dir, outside := tree(t)
	must(t, os.MkdirAll(dir+"/gone/a/b", 0o755))
	must(t, os.WriteFile(dir+"/gone/a/file", nil, 0o400))
	must(t, os.Symlink(outside, dir+"/gone/a/link"))
	must(t, unix.Mkfifo(dir+"/gone/fifo", 0o644))

	for i := range 2*readBatch + 10 {
		must(t, os.WriteFile(fmt.Sprintf("%s/gone/a/b/%d", dir, i), nil, 0o644))
	}
	must(t, os.WriteFile(dir+"/stays", nil, 0o644))
	must(t, os.Symlink("stays", dir+"/link"))

	for _, name := range []string{"gone", "gone", "link"} {
		if err := RemoveAll(t.Context(), root, name); err != nil {
			t.Fatalf("RemoveAll(%q): %v", name, err)
		}
	}

	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "stays" {
		t.Errorf("left: %v, %v", left, err)
	}

	for _, name := range []string{"", ".", "..", "../outside", "/", "a/b"} {
		if err := RemoveAll(t.Context(), root, name); !errors.Is(err, ErrName) {
			t.Errorf("RemoveAll(%q): %v, want ErrName", name, err)
		}
	}
}

// A tree may be far deeper than PATH_MAX or the descriptor table allow.
func TestRemoveAllDeep(t *testing.T) {
	root, dir, _ := tree(t)
	const depth = 2000
	must(t, os.Mkdir(dir+"/deep", 0o755))
	fd, err := unix.Open(dir+"/deep", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)

	for range depth {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	must(t, os.Mkdir(dir+"/deep/.removed-1", 0o755)) // the first name that moveUp would use
	if err := RemoveAll(t.Context(), root, "deep"); err != nil {
		t.Fatal(err)
	}

	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestNodeFile reads files by paths of the node, and waits for none.
func TestNodeFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(
		os.WriteFile("file", []byte("content"), 0o600), os.Symlink("file", "link"), unix.Mkfifo("fifo", 0o600), os.Symlink("/dev/zero", "endless"),
		os.Mkdir("directory", 0o700),
	); err != nil {
		t.Fatal(err)
	}

	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}

	for path, want := range map[string]error{
		"file": nil, dir + "/file": nil, dir + "/link": nil, "./directory/../link": nil, "none": fs.ErrNotExist,
		dir + "/fifo": ErrNotRegular, dir + "/endless": ErrNotRegular, "directory": ErrNotRegular,
	} {
		data, err := ReadNodeFile(path, 7)
		if !errors.Is(err, want) || err == nil && string(data) != "content" {
			t.Errorf("%s: %q, %v, want %v", path, data, err, want)
		}

		f, err := OpenNodeFile(path, 7)
		if !errors.Is(err, want) {
			t.Errorf("open %s: %v, want %v", path, err, want)
		}
		if err == nil {
			f.Close()
		}
	}

	if _, err := ReadNodeFile("file", 6); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a longer file: %v, want %v", err, ErrTooLarge)
	}
}
