package rootpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// same keeps owners.
func same(uid, gid uint32) (int, int) { return int(uid), int(gid) }

// shown maps the IDs from 100000 on, as in the root file system of a pod with a
// user namespace, to those in the namespace.
func shown(uid, gid uint32) (int, int) {
	inside := func(id uint32) int {
		if id >= 100000 && id < 165536 {
			return int(id - 100000)
		}
		return int(id)
	}
	return inside(uid), inside(gid)
}

// copyOf copies the tree at dir and returns the copy.
func copyOf(t *testing.T, dir string, owner func(uid, gid uint32) (int, int)) string {
	t.Helper()
	to := t.TempDir()
	must(t, CopyTree(t.Context(), openDir(t, dir), openDir(t, to), owner))
	return to
}

func statOf(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st
}

// xattrOf is the value of an extended attribute, nil if there is none.
func xattrOf(t *testing.T, path, name string) []byte {
	t.Helper()
	value := make([]byte, maxXattrValue)
	n, err := unix.Lgetxattr(path, name, value)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	must(t, err)
	return value[:n]
}

// aclOf is an access control list with a user, a group and a mask entry in
// addition to the mandatory ones.
func aclOf(uid, gid uint32) []byte {
	const nobody = ^uint32(0)
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, nobody}, {aclUser, 4, uid}, {0x04, 4, nobody}, {aclGroup, 4, gid}, {0x10, 4, nobody}, {0x20, 0, nobody}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	return acl
}

// capsOf are file capabilities for the user namespace of a root.
func capsOf(root uint32) []byte {
	words := []uint32{capRevision2 | 1, 1 << unix.CAP_NET_BIND_SERVICE, 0, 0, 0}
	if root != 0 {
		words[0] = capRevision3 | 1
		words = append(words, root)
	}
	var value []byte
	for _, w := range words {
		value = binary.LittleEndian.AppendUint32(value, w)
	}
	return value
}

func TestCopyTreeKeepsTimes(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/sub", 0o751))
	must(t, os.WriteFile(dir+"/sub/file", []byte("x"), 0o640))
	must(t, os.Symlink("nowhere", dir+"/sub/link"))
	must(t, unix.Mkfifo(dir+"/sub/fifo", 0))
	must(t, os.Chmod(dir+"/sub/fifo", 0o622))

	// Names below a directory change its times: the innermost come first.
	names := []string{"sub/file", "sub/link", "sub/fifo", "sub", "."}
	want := map[string][2]unix.Timespec{}
	for n, name := range names {
		atime := unix.Timespec{Sec: int64(1_000_000_000 + n), Nsec: 123_456_789}
		mtime := unix.Timespec{Sec: int64(900_000_000 - n), Nsec: 987_654_321}
		want[name] = [2]unix.Timespec{atime, mtime}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW))
	}

	to := copyOf(t, dir, same)
	for name, times := range want {
		st := statOf(t, filepath.Join(to, name))
		if st.Mtim != times[1] {
			t.Errorf("%s: modified at %v, want %v", name, st.Mtim, times[1])
		}
		// Reading a directory or file of the source may change when it was read.
		if name == "sub/fifo" && st.Atim != times[0] {
			t.Errorf("%s: read at %v, want %v", name, st.Atim, times[0])
		}
	}

	if st := statOf(t, to+"/sub/fifo"); st.Mode != unix.S_IFIFO|0o622 {
		t.Errorf("fifo: mode %o", st.Mode)
	}
}

func TestCopyTreeKeepsAttributes(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	file, sub := dir+"/file", dir+"/sub"
	must(t, os.WriteFile(file, nil, 0o644))
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.Chown(file, 33, 44))
	must(t, os.Chmod(file, 0o755|os.ModeSetuid))

	big := bytes.Repeat([]byte("v"), 2000)
	for _, set := range []struct {
		path, name string
		value      []byte
	}{
		{file, capability, capsOf(0)}, {file, "user.note", big}, {file, "user.empty", []byte{}}, {file, aclAccess, aclOf(1000, 2000)},
		{sub, "user.overlay.opaque", []byte("y")}, {sub, "trusted.mark", []byte("m")}, {sub, aclDefault, aclOf(7, 8)},
	} {
		must(t, unix.Setxattr(set.path, set.name, set.value, 0))
	}

	to := copyOf(t, dir, same)
	for name, want := range map[string][]byte{capability: capsOf(0), "user.note": big, "user.empty": {}, aclAccess: aclOf(1000, 2000)} {
		if got := xattrOf(t, to+"/file", name); got == nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}

	for name, want := range map[string][]byte{"user.overlay.opaque": nil, "trusted.mark": nil, aclDefault: aclOf(7, 8)} {
		if got := xattrOf(t, to+"/sub", name); !bytes.Equal(got, want) {
			t.Errorf("%s of the directory: %x, want %x", name, got, want)
		}
	}

	st := statOf(t, to+"/file")
	if want := statOf(t, file); st.Mode != want.Mode || st.Uid != 33 || st.Gid != 44 {
		t.Errorf("mode %o of %d:%d, want %o of 33:44", st.Mode, st.Uid, st.Gid, want.Mode)
	}
}

func TestCopyTreeTranslatesUsers(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	for name, root := range map[string]uint32{"own": 100000, "nested": 101000, "node": 0} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o755))
		must(t, unix.Setxattr(filepath.Join(dir, name), capability, capsOf(root), 0))
	}

	must(t, unix.Setxattr(dir+"/own", aclAccess, aclOf(101000, 102000), 0))

	to := copyOf(t, dir, shown)
	for name, root := range map[string]uint32{"own": 0, "nested": 1000, "node": 0} {
		if got := xattrOf(t, filepath.Join(to, name), capability); !bytes.Equal(got, capsOf(root)) {
			t.Errorf("%s: capabilities %x, want %x", name, got, capsOf(root))
		}
	}

	if got := xattrOf(t, to+"/own", aclAccess); !bytes.Equal(got, aclOf(1000, 2000)) {
		t.Errorf("access control list %x, want %x", got, aclOf(1000, 2000))
	}
}

func TestCopyTreeKeepsNamesTogether(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	must(t, os.WriteFile(dir+"/a/one", []byte("content"), 0o644))
	must(t, os.Link(dir+"/a/one", dir+"/a/b/two"))
	must(t, os.Link(dir+"/a/one", dir+"/three"))
	must(t, os.Symlink("a/one", dir+"/link"))
	must(t, os.Link(dir+"/link", dir+"/a/link"))

	// One of this file's names is outside the copied tree.
	must(t, os.WriteFile(dir+"/lone", []byte("lone"), 0o644))
	must(t, os.Link(dir+"/lone", filepath.Join(t.TempDir(), "outside")))

	to := copyOf(t, dir, same)
	one := statOf(t, to+"/a/one")
	for _, name := range []string{"a/b/two", "three"} {
		if st := statOf(t, filepath.Join(to, name)); st.Ino != one.Ino || st.Nlink != 3 {
			t.Errorf("%s is file %d of %d names, want %d of 3", name, st.Ino, st.Nlink, one.Ino)
		}
	}

	if a, b := statOf(t, to+"/link"), statOf(t, to+"/a/link"); a.Ino != b.Ino || a.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("links are files %d and %d of mode %o", a.Ino, b.Ino, a.Mode)
	}
	if st := statOf(t, to+"/lone"); st.Nlink != 1 {
		t.Errorf("a file with one name in the copy has %d", st.Nlink)
	}

	if data, err := os.ReadFile(to + "/a/b/two"); err != nil || string(data) != "content" {
		t.Errorf("content %q, %v", data, err)
	}
}

// A source may have any number of files with several names: the memory for them
// is bounded.
func TestCopyTreeRemembersFewNames(t *testing.T) {
	dir := t.TempDir()
	c := copying{ctx: t.Context(), own: same, top: openDir(t, t.TempDir()), linked: map[fileID]copied{}}
	for n := range maxLinked {
		c.linked[fileID{dev: ^uint64(0), ino: uint64(n)}] = copied{}
	}

	for n := range 3 {
		name := filepath.Join(dir, strconv.Itoa(n))
		must(t, os.WriteFile(name, nil, 0o600))
		must(t, os.Link(name, name+"-too"))
	}

	must(t, c.directory(openDir(t, dir), c.top))
	if len(c.linked) != maxLinked {
		t.Errorf("remembers %d files", len(c.linked))
	}

	names, err := os.ReadDir(c.top.Name())
	if err != nil || len(names) != 6 {
		t.Errorf("%d names copied, %v", len(names), err)
	}
}

// A path may exceed PATH_MAX, and many paths the memory bound: hard links of
// such files become separate files, and all are copied.
func TestCopyTreeOfLongPaths(t *testing.T) {
	dir := t.TempDir()
	at, err := os.Open(dir)
	must(t, err)
	for range 20 {
		name := strings.Repeat("d", 250)
		must(t, unix.Mkdirat(int(at.Fd()), name, 0o755))
		fd, err := unix.Openat(int(at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		at.Close()
		at = os.NewFile(uintptr(fd), name)
	}
	defer at.Close()
	fd, err := unix.Openat(int(at.Fd()), "deep", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	must(t, err)
	unix.Close(fd)
	must(t, unix.Linkat(int(at.Fd()), "deep", int(at.Fd()), "too", 0))

	c := copying{ctx: t.Context(), own: same, top: openDir(t, t.TempDir()), linked: map[fileID]copied{}}
	must(t, c.directory(openDir(t, dir), c.top))
	if len(c.linked) != 0 || c.linkedPaths != 0 {
		t.Errorf("remembers %d files by %d bytes", len(c.linked), c.linkedPaths)
	}

	id, full := fileID{ino: 1}, maxLinkedPaths-len("name")
	for _, room := range []int{full, full + 1} {
		c := copying{path: []string{"name"}, linked: map[fileID]copied{}, linkedPaths: room}
		c.remember(id, &unix.Stat_t{Nlink: 2})
		if _, remembered := c.linked[id]; remembered != (room == full) {
			t.Errorf("with %d bytes remembered: %v", room, remembered)
		}
	}
}
