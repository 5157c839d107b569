package rootpath

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxLinks is the kernel's bound on the links of one path lookup.
	maxLinks = 40
	// maxRaces bounds how often one component may change between two lookups.
	maxRaces = 100

	targetDirPerm  = 0o755
	targetFilePerm = 0o644
)

// Owner is the owner of files that this package creates. With the zero Owner
// files belong to the process's user.
type Owner struct{ UID, GID int }

// MkdirAll creates the directory path inside root with its missing parents, and
// returns an O_PATH descriptor of it. Symbolic links are followed inside root,
// and the target of a dangling one is created. Only directories created here
// are chowned to own; perm is subject to the umask.
func MkdirAll(root *os.File, path string, perm uint32, own Owner) (*os.File, error) {
	dir, err := Open(root, orDot(path), unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	m := maker{root: root, perm: perm, own: own}
	return m.make(path)
}

// CreateTarget makes sure that path exists inside root, as a mount target: if
// missing it is created as a directory if dir is set, else as an empty file. An
// existing file of any type is accepted.
func CreateTarget(root *os.File, path string, dir bool, own Owner) error {
	f, err := Open(root, orDot(path), unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) {
		m := maker{root: root, perm: targetDirPerm, own: own, fileLeaf: !dir}
		f, err = m.make(path)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func orDot(path string) string {
	if path == "" {
		return "."
	}
	return path
}

// maker walks a path one component at a time and creates missing ones. The
// kernel cannot do that in one call, since a dangling link ends its lookup.
type maker struct {
	root     *os.File
	perm     uint32
	own      Owner
	fileLeaf bool // the last component is created as a file

	cur   *os.File // the directory reached
	done  []string // the names that lead from root to cur, free of links
	rest  []string // the components still to walk
	links int
}

func (m *maker) make(path string) (*os.File, error) {
	m.rest = components(path)
	err := m.reopen()
	races := 0
	for err == nil && len(m.rest) > 0 {
		err = m.step()
		if errors.Is(err, fs.ErrExist) && races < maxRaces {
			races++
			err = nil
		}
	}
	if err != nil {
		if m.cur != nil {
			m.cur.Close()
		}
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, &fs.PathError{Op: "make", Path: path, Err: err}
	}

	return m.cur, nil
}

// step walks the first component of rest. It returns [fs.ErrExist], with
// nothing consumed, if the component was created concurrently.
func (m *maker) step() error {
	name := m.rest[0]
	if name == ".." {
		m.rest = m.rest[1:]
		m.done = m.done[:max(len(m.done)-1, 0)]
		return m.reopen()
	}

	next, err := openat2(m.cur, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: plain})
	if errors.Is(err, fs.ErrNotExist) {
		next, err = m.create(name)
	}
	if err != nil {
		return err
	}

	var st unix.Stat_t
	if err := unix.Fstat(int(next.Fd()), &st); err != nil {
		next.Close()
		return err
	}

	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		defer next.Close()
		return m.follow(next)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR, m.fileLeaf && len(m.rest) == 1:
		m.cur.Close()
		m.cur, m.done, m.rest = next, append(m.done, name), m.rest[1:]
		return nil
	default:
		next.Close()
		return unix.ENOTDIR
	}
}

// create creates name in cur and opens it.
func (m *maker) create(name string) (*os.File, error) {
	var err error
	if m.fileLeaf && len(m.rest) == 1 {
		var f *os.File
		if f, err = CreateFile(m.cur, name, targetFilePerm); err == nil {
			f.Close()
		}
	} else {
		err = unix.Mkdirat(int(m.cur.Fd()), name, m.perm)
	}
	if err != nil {
		return nil, err
	}

	f, err := openat2(m.cur, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: plain})
	if err != nil || m.own == (Owner{}) {
		return f, err
	}

	if err := unix.Fchownat(int(f.Fd()), "", m.own.UID, m.own.GID, unix.AT_EMPTY_PATH); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// follow replaces the first component of rest by the target of the open link.
func (m *maker) follow(link *os.File) error {
	if m.links++; m.links > maxLinks {
		return unix.ELOOP
	}
	target, err := readlink(link)
	if errors.Is(err, unix.EINVAL) {
		return unix.ELOOP // a magic link of procfs
	}
	if err != nil {
		return err
	}

	m.rest = append(components(target), m.rest[1:]...)
	if strings.HasPrefix(target, "/") {
		m.done = nil
		return m.reopen()
	}
	return nil
}

// reopen opens the directory that done leads to. It starts at the root, because
// ".." of a moved directory may be outside.
func (m *maker) reopen() error {
	dir, err := openat2(m.root, orDot(strings.Join(m.done, "/")), unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY,
		Resolve: plain | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	if m.cur != nil {
		m.cur.Close()
	}
	m.cur = dir
	return nil
}

func components(path string) []string {
	var out []string
	for c := range strings.SplitSeq(path, "/") {
		if c != "" && c != "." {
			out = append(out, c)
		}
	}
	return out
}
