package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/image/store"
)

// attributes are the metadata of a file in an archive.
type attributes struct {
	uid, gid int
	mode     uint32
	mtime    time.Time
	xattrs   []xattr
}

// xattr is an extended attribute.
type xattr struct{ name, value string }

// size returns about how much memory the attributes occupy, in bytes.
func (a *attributes) size() int {
	n := 0
	for _, x := range a.xattrs {
		n += len(x.name) + len(x.value)
	}
	return n
}

// attributesOf extracts the attributes that a layer may set from a header. It
// copies strings: those of a header are substrings of the whole header, which
// they would keep in memory.
func attributesOf(hdr *tar.Header) (attributes, error) {
	a := attributes{uid: hdr.Uid, gid: hdr.Gid, mode: permissions(hdr), mtime: hdr.ModTime}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !allowedXattr(name) {
			continue
		}

		if len(value) > maxXattr {
			return a, fmt.Errorf("%w: attribute %s of %d bytes", ErrTooLarge, shorten(name), len(value))
		}
		if len(a.xattrs) == maxXattrs {
			return a, fmt.Errorf("%w: more than %d extended attributes", ErrTooLarge, maxXattrs)
		}
		a.xattrs = append(a.xattrs, xattr{strings.Clone(name), strings.Clone(value)})
	}

	return a, nil
}

// createFile creates the empty file name, a single path component, in a
// directory. It is an error if anything exists there, even a link.
func createFile(dir int, name string, a *attributes) (int, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(dir, name, flags, a.mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// finishFile sets the attributes that a file made by [createFile] lacks, closes
// it and returns its disk usage.
func finishFile(fd int, a *attributes) (store.Usage, error) {
	usage, err := a.apply(fd)
	return usage, errors.Join(err, unix.Close(fd))
}

func (a *attributes) apply(fd int) (store.Usage, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return store.Usage{}, err
	}

	// Most files belong to root and have a mode that the umask does not affect:
	// these two system calls are rarely needed.
	owned := int(st.Uid) == a.uid && int(st.Gid) == a.gid
	if !owned {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return store.Usage{}, err
		}
	}

	// In this order: chown clears the set-user-ID bit.
	if !owned || st.Mode&0o7777 != a.mode {
		if err := unix.Fchmod(fd, a.mode); err != nil {
			return store.Usage{}, err
		}
	}

	if err := a.setXattrs(fd); err != nil {
		return store.Usage{}, err
	}
	ts := timespecs(a.mtime)
	if err := unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH); err != nil {
		return store.Usage{}, err
	}

	return store.Usage{Bytes: uint64(st.Blocks) * 512, Inodes: 1}, nil
}

// setXattrs sets the extended attributes, on file systems that support them.
func (a *attributes) setXattrs(fd int) error {
	for _, x := range a.xattrs {
		err := unix.Fsetxattr(fd, x.name, []byte(x.value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", shorten(x.name), err)
		}
	}
	return nil
}

// allowedXattr reports whether an image may set an extended attribute. Those of
// overlayfs, security labels and signatures belong to the host.
func allowedXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") &&
		strings.IndexByte(name, 0) < 0
}

// fdWriter writes to a file descriptor.
type fdWriter int

func (w fdWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := unix.Write(int(w), p[n:])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return n, err
		}
		n += max(m, 0)
	}
	return n, nil
}
