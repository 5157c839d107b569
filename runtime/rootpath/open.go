package rootpath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// inRoot resolves a whole path as if the directory were "/".
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	// plain opens a name in a directory, following nothing.
	plain = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

	// maxRetries bounds the attempts of a lookup that fails with EAGAIN because
	// of a concurrent rename.
	maxRetries = 1000
)

// Open opens path inside root. O_CLOEXEC is added to flags; O_CREAT and
// O_TMPFILE are refused, see [CreateFile].
func Open(root *os.File, path string, flags int) (*os.File, error) {
	if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EINVAL}
	}
	return openat2(root, path, unix.OpenHow{Flags: uint64(flags), Resolve: inRoot})
}

// OpenRegular opens path inside root for reading if it is a regular file of
// at most maxSize bytes, and fails with [ErrNotRegular] or [ErrTooLarge] if it
// is not. Nothing but a regular file is ever opened: no FIFO can block the
// caller and no device sees an open. The file may grow afterwards, so readers
// need a limit of their own, as [ReadFile] has.
func OpenRegular(root *os.File, path string, maxSize int64) (*os.File, error) {
	handle, err := Open(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer handle.Close()

	var st unix.Stat_t
	if err := unix.Fstat(int(handle.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}

	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if st.Size > maxSize {
		return nil, &fs.PathError{Op: "open", Path: path,
			Err: fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, st.Size, maxSize)}
	}

	return Reopen(handle, path, unix.O_RDONLY)
}

// ReadFile returns the content of the regular file path inside root, which
// may have at most maxSize bytes, counted while reading.
func ReadFile(root *os.File, path string, maxSize int64) ([]byte, error) {
	f, err := OpenRegular(root, path, maxSize)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxSize {
		return nil, &fs.PathError{Op: "read", Path: path, Err: ErrTooLarge}
	}
	return data, nil
}

// OpenNodeFile is [OpenRegular] for a path of the node: a file that an administrator,
// or a program that one has installed, has put into a directory which the daemon reads.
// Whatever is there, the daemon does not wait for it.
func OpenNodeFile(path string, maxSize int64) (*os.File, error) {
	root, path, err := onNode(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return OpenRegular(root, path, maxSize)
}

// ReadNodeFile is [ReadFile] for a path of the node, as [OpenNodeFile].
func ReadNodeFile(path string, maxSize int64) ([]byte, error) {
	root, path, err := onNode(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return ReadFile(root, path, maxSize)
}

// onNode returns the node's root, and a path in there.
func onNode(path string) (*os.File, string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	root, err := os.Open("/")
	return root, path, err
}

// CreateFile creates the new, empty file name in dir and opens it for writing.
// name is one component; if it exists, even as a dangling link, the error is
// [fs.ErrExist]. perm is subject to the umask.
func CreateFile(dir *os.File, name string, perm uint32) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return openat2(dir, name, unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW,
		Mode:    uint64(perm),
		Resolve: plain,
	})
}

// AppendFile opens the regular file name in dir for appending, and creates it
// if it does not exist, with perm subject to the umask. name is one component.
// A link is not followed, and nothing but a regular file is ever opened: a
// device node at that name is neither opened nor written to.
func AppendFile(dir *os.File, name string, perm uint32) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for range maxRaces {
		f, err := CreateFile(dir, name, perm)
		if err == nil {
			defer f.Close()
			return Reopen(f, name, unix.O_WRONLY|unix.O_APPEND)
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}

		f, err = openat2(dir, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: plain})
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()

		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
		}

		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
		}
		return Reopen(f, name, unix.O_WRONLY|unix.O_APPEND)
	}

	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Reopen opens the file of an O_PATH descriptor; path is what errors call it. The
// magic link is in our own procfs and leads to exactly that inode.
func Reopen(f *os.File, path string, flags int) (*os.File, error) {
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %q", ErrName, name)
	}
	return nil
}

func openat2(dir *os.File, path string, how unix.OpenHow) (*os.File, error) {
	how.Flags |= unix.O_CLOEXEC
	defer runtime.KeepAlive(dir)
	var err error
	for range maxRetries {
		var fd int
		fd, err = unix.Openat2(int(dir.Fd()), path, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}

	return nil, &fs.PathError{Op: "open", Path: path, Err: err}
}

// Readlink returns the target of the symbolic link path inside root, whose
// directories must not be links. It fails with EINVAL for other files, and for
// a magic link of procfs, whose text is not where it leads.
func Readlink(root *os.File, path string) (string, error) {
	link, err := openat2(root, path, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: plain})
	if err != nil {
		return "", err
	}
	defer link.Close()
	text, err := readlink(link)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	return text, nil
}

// readlink returns the target of an open link.
func readlink(link *os.File) (string, error) {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(link.Fd()), &sfs); err != nil {
		return "", err
	}
	if sfs.Type == unix.PROC_SUPER_MAGIC {
		return "", unix.EINVAL
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(link.Fd()), "", buf)
	if err == unix.ENOENT { // not a link
		err = unix.EINVAL
	}
	return string(buf[:max(n, 0)]), err
}

// OpenUnlinked opens path inside root if no part of it is a symbolic link, and
// fails with ELOOP if one is.
func OpenUnlinked(root *os.File, path string, flags int) (*os.File, error) {
	return openat2(root, path, unix.OpenHow{Flags: uint64(flags), Resolve: inRoot | unix.RESOLVE_NO_SYMLINKS})
}
