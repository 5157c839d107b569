package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"crisp/image/store"
	"crisp/runtime/rootpath"
)

const (
	// impliedPerm is the mode of a directory that no layer lists.
	impliedPerm = 0o755

	// The ranges of Linux's device numbers.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1

	paxXattr = "SCHILY.xattr."
	maxXattr = 64 << 10
	// maxXattrs bounds the extended attributes of a file.
	maxXattrs = 256
)

// create makes the file that hdr describes at name. It replaces what an earlier
// entry may have put there.
func (u *unpacker) create(name string, hdr *tar.Header, body io.Reader) error {
	if err := checkOwner(hdr); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeReg && u.crew.pending[name] {
		if err := u.flush(); err != nil {
			return err
		}
	}

	base := path.Base(name)
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(name, hdr)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.regular(name, hdr, body)
	case tar.TypeLink:
		return u.hardLink(name, hdr)
	case tar.TypeSymlink:
		return u.replacing(name, func(dir *os.File) error {
			if err := unix.Symlinkat(hdr.Linkname, int(dir.Fd()), base); err != nil {
				return err
			}
			return u.special(dir, base, hdr)
		})
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		mode, dev, err := deviceNumber(hdr)
		if err != nil {
			return err
		}
		return u.replacing(name, func(dir *os.File) error {
			if err := unix.Mknodat(int(dir.Fd()), base, mode, dev); err != nil {
				return err
			}
			return u.special(dir, base, hdr)
		})
	default:
		return fmt.Errorf("%w: entry of type %q", ErrUnsupported, hdr.Typeflag)
	}
}

// replacing calls create with name's directory. If something exists there, it is
// removed and create is called again.
func (u *unpacker) replacing(name string, create func(dir *os.File) error) error {
	dir, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}

	if err := create(dir); !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := u.flush(); err != nil {
		return err
	}

	if dir, err = u.remove(dir, name); err != nil {
		return err
	}
	return create(dir)
}

// remove removes what an earlier entry made at name in dir, and returns dir,
// which may have to be opened anew.
func (u *unpacker) remove(dir *os.File, name string) (*os.File, error) {
	base := path.Base(name)
	gone, err := measureTree(u.ctx, dir, base)
	if err != nil {
		return nil, err
	}

	if err := rootpath.RemoveAll(u.ctx, dir, base); err != nil {
		return nil, err
	}
	u.usage.Bytes -= min(gone.Bytes, u.usage.Bytes)
	u.usage.Inodes -= min(gone.Inodes, u.usage.Inodes)
	u.dirNames.forget(name)

	// Cached directories may be inside what was removed, or behind a link that
	// was removed.
	u.dirs.close()
	return u.parent(path.Dir(name))
}

// directory makes a directory, or sets the attributes of an existing one.
func (u *unpacker) directory(name string, hdr *tar.Header) error {
	base := path.Base(name)
	dir, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}

	err = unix.Mkdirat(int(dir.Fd()), base, impliedPerm)
	if errors.Is(err, unix.EEXIST) {
		dir, err = u.replaceByDirectory(dir, name)
	}
	if err != nil {
		return err
	}

	sub, ok := u.dirs.cached(u.root, name)
	if !ok {
		if sub, err = openDir(dir, base); err != nil {
			return err
		}
		if err := u.dirs.add(name, sub); err != nil {
			return errors.Join(err, sub.Close())
		}
	}

	return u.setDir(name, sub, hdr)
}

// replaceByDirectory makes a directory where something exists. A directory is
// kept; a whiteout makes the new directory opaque.
func (u *unpacker) replaceByDirectory(dir *os.File, name string) (*os.File, error) {
	base := path.Base(name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}

	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return dir, nil
	}
	if err := u.flush(); err != nil {
		return nil, err
	}

	dir, err := u.remove(dir, name)
	if err != nil {
		return nil, err
	}

	if err := unix.Mkdirat(int(dir.Fd()), base, impliedPerm); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return dir, nil
	}

	sub, err := openDir(dir, base)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return dir, setOpaque(sub)
}

// setDir sets the attributes of an open directory from its entry.
func (u *unpacker) setDir(name string, dir *os.File, hdr *tar.Header) error {
	if err := checkOwner(hdr); err != nil {
		return err
	}
	attr, err := attributesOf(hdr)
	if err != nil {
		return err
	}

	if err := unix.Fchown(int(dir.Fd()), attr.uid, attr.gid); err != nil {
		return err
	}

	if err := unix.Fchmod(int(dir.Fd()), attr.mode); err != nil {
		return err
	}
	if err := attr.setXattrs(int(dir.Fd())); err != nil {
		return err
	}
	return u.dirNames.list(name, hdr.ModTime)
}

// regular writes a regular file, or gives it to the crew.
func (u *unpacker) regular(name string, hdr *tar.Header, body io.Reader) error {
	if done, err := u.small(name, hdr, body); done || err != nil {
		return err
	}
	if u.crew.pending[name] {
		if err := u.flush(); err != nil {
			return err
		}
	}

	attr, err := attributesOf(hdr)
	if err != nil {
		return err
	}
	return u.replacing(name, func(dir *os.File) error {
		fd, err := createFile(int(dir.Fd()), path.Base(name), &attr)
		if err != nil {
			return err
		}

		n, err := io.CopyBuffer(fdWriter(fd), onlyReader{body}, u.buf)
		if err == nil && n != hdr.Size {
			err = fmt.Errorf("%w: file ends after %d of %d bytes", ErrInvalid, n, hdr.Size)
		}
		if err != nil {
			return errors.Join(archiveError(err), unix.Close(fd))
		}

		usage, err := finishFile(fd, &attr)
		u.usage = u.usage.Add(usage)
		return err
	})
}

// hardLink links name to a file of the same layer. If the last component of the
// target is a symbolic link, the link itself is linked, never followed.
func (u *unpacker) hardLink(name string, hdr *tar.Header) error {
	if err := u.flush(); err != nil {
		return err
	}
	target, err := entryPath(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("link to %q: %w", shorten(hdr.Linkname), err)
	}

	if target == name {
		return fmt.Errorf("%w: hard link to itself", ErrInvalid)
	}
	from, err := rootpath.Open(u.root, path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(hdr.Linkname), err)
	}
	defer from.Close()

	err = u.replacing(name, func(dir *os.File) error {
		return unix.Linkat(int(from.Fd()), path.Base(target), int(dir.Fd()), path.Base(name), 0)
	})
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(hdr.Linkname), err)
	}
	return nil
}

// special sets the attributes of a new symbolic link, device or FIFO.
func (u *unpacker) special(dir *os.File, base string, hdr *tar.Header) error {
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}

	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, permissions(hdr), 0); err != nil {
			return err
		}
	}

	ts := timespecs(hdr.ModTime)
	if err := unix.UtimesNanoAt(fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}

	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	u.usage = u.usage.Add(store.Usage{Bytes: uint64(st.Blocks) * 512, Inodes: 1})
	return nil
}

func deviceNumber(hdr *tar.Header) (mode uint32, dev int, err error) {
	switch hdr.Typeflag {
	case tar.TypeFifo:
		return unix.S_IFIFO | 0o600, 0, nil
	case tar.TypeChar:
		mode = unix.S_IFCHR | 0o600
		if hdr.Devmajor == 0 && hdr.Devminor == 0 {
			return 0, 0, fmt.Errorf("%w: character device 0:0, which overlayfs takes for a whiteout", ErrInvalid)
		}
	case tar.TypeBlock:
		mode = unix.S_IFBLK | 0o600
	}

	if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
		return 0, 0, fmt.Errorf("%w: device number %d:%d", ErrInvalid, hdr.Devmajor, hdr.Devminor)
	}
	return mode, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))), nil
}

// checkOwner refuses owners that the kernel cannot store: to chown, the highest
// number means "unchanged".
func checkOwner(hdr *tar.Header) error {
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		if id < 0 || int64(id) >= math.MaxUint32 {
			return fmt.Errorf("%w: owner %d:%d", ErrInvalid, hdr.Uid, hdr.Gid)
		}
	}
	return nil
}

func permissions(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & 0o7777 }

func timespecs(t time.Time) [2]unix.Timespec {
	// Later times do not fit into 64 bits of nanoseconds, nor into any file system.
	const limit = 1 << 34
	ts := unix.Timespec{Sec: max(min(t.Unix(), limit), -limit), Nsec: int64(t.Nanosecond())}
	return [2]unix.Timespec{ts, ts}
}

func setTime(f *os.File, t time.Time) error {
	ts := timespecs(t)
	return unix.UtimesNanoAt(int(f.Fd()), "", ts[:], unix.AT_EMPTY_PATH)
}
