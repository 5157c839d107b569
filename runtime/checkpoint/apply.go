package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

const (
	// maxFileHeaders bounds the headers of a file in rootfs-diff.tar, in bytes: its
	// extended attributes, its name and the target of a link.
	maxFileHeaders = maxAttributes + 64<<10
	// firstPerm is the mode of a directory until its own is set.
	firstPerm = 0o700
	// maxDeletedText bounds a path in deleted.files, in bytes of JSON with what the
	// decoder reads ahead.
	maxDeletedText = 128 << 10

	// The ranges of Linux's device numbers.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// IDs translates owners in the container to those on the disk. An error means that
// the container has no such user or group.
type IDs func(uid, gid int) (uint32, uint32, error)

// MappedIDs are those of a user namespace with these mappings, or of none. One that the user
// namespace has not is no owner that a file in the container could have had.
func MappedIDs(uids, gids []specs.LinuxIDMapping) IDs {
	return func(uid, gid int) (uint32, uint32, error) {
		u, uok := mapped(uids, uid)
		g, gok := mapped(gids, gid)
		if !uok || !gok {
			return 0, 0, fmt.Errorf("%w: a file of user %d and group %d, which the container's user namespace has not", ErrInvalid, uid, gid)
		}
		return u, g, nil
	}
}

// mapped is a user or group of a container on the node.
func mapped(maps []specs.LinuxIDMapping, id int) (uint32, bool) {
	for _, m := range maps {
		if id >= int(m.ContainerID) && id-int(m.ContainerID) < int(m.Size) {
			return m.HostID + uint32(id) - m.ContainerID, true
		}
	}
	return uint32(id), len(maps) == 0
}

// Apply makes a container's root file system what it was: it adds the changed files
// to root, which is mounted and in which nothing runs, and removes the deleted ones.
// What is at the path of a changed file is replaced, whatever it is; a directory stays,
// with the new one's attributes.
//
// The checkpoint is hostile. No link is followed, nothing is made outside of root or on
// another mount, and it takes no more of the disk than [Terms.Bytes]. Apart from that
// it may do what an image's layer may: make devices, set-user-ID files and those with
// capabilities, which are worth what the container's user, bounding set and device
// rules are. Attributes of overlayfs are refused, labels of the node's are left out.
//
// The error is [ErrInvalid] for what cannot be applied, with the path of the file. When
// ctx ends, Apply does, with the cause. After an error root is of no use.
func (u *Unpacked) Apply(ctx context.Context, root *os.File, ids IDs) error {
	a := applier{ctx: ctx, root: root, ids: ids, buffer: make([]byte, 128<<10)}
	if err := u.applyDiff(&a); err != nil {
		return fmt.Errorf("restore changed files: %w", err)
	}
	if err := u.EachDeleted(ctx, a.delete); err != nil {
		return fmt.Errorf("restore deleted files: %w", err)
	}
	return nil
}

func (u *Unpacked) applyDiff(a *applier) error {
	f, err := u.OpenDiff()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return a.all(f)
}

// all makes what all entries of an archive describe.
func (a *applier) all(archive io.Reader) error {
	defer a.leave(0)
	from := &source{ctx: a.ctx, r: archive, rest: math.MaxInt64 - 1}
	r := tar.NewReader(from)
	for {
		from.header = maxFileHeaders
		h, err := r.Next()
		from.header = 0
		if errors.Is(err, io.EOF) {
			return a.leave(0)
		}
		if err != nil {
			return diffError(err)
		}
		if err := a.entry(h, r); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, diffError(err))
		}
	}
}

// diffError marks errors that are the archive's fault.
func diffError(err error) error {
	for _, broken := range []error{
		unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.EPERM,
		unix.EMLINK, unix.EXDEV, unix.E2BIG, unix.ERANGE, rootpath.ErrMountPoint, rootpath.ErrName,
	} {
		if errors.Is(err, broken) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return archiveError(err)
}

// EachDeleted calls use with the absolute path of each deleted file. The lists are read
// while use is called, and not kept.
func (u *Unpacked) EachDeleted(ctx context.Context, use func(path string) error) error {
	if err := u.eachIn(ctx, deletedFile, use); err != nil {
		return err
	}
	return u.eachIn(ctx, deletedRaw, func(text string) error {
		path, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, deletedRaw, err)
		}
		return use(string(path))
	})
}

// eachIn calls use with each text of a list in a file, which may be missing.
func (u *Unpacked) eachIn(ctx context.Context, file string, use func(text string) error) error {
	f, err := u.open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()

	from := &source{ctx: ctx, r: f, rest: math.MaxInt64 - 1}
	list := json.NewDecoder(from)
	for first := true; ; first = false {
		from.header = maxDeletedText
		token, err := list.Token()
		from.header = 0
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		text, isText := token.(string)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %s: %w", ErrInvalid, file, err)
		case first && token == json.Delim('['):
		case first && token == nil: // null
			return nil
		case !first && isText:
			if err := use(text); err != nil {
				return fmt.Errorf("%.200q: %w", text, diffError(err))
			}
		case !first && token == json.Delim(']'):
			return nil
		default:
			return fmt.Errorf("%w: %s is no list of texts", ErrInvalid, file)
		}
	}
}

// applier applies one difference.
type applier struct {
	ctx    context.Context // of one call, which ends with it
	root   *os.File
	ids    IDs
	buffer []byte
	// refill is set for a /dev/shm.
	refill *Refill

	// at are the directories that lead to the last entry: an archive has a directory
	// before what is in it.
	at []level
}

// level is a directory that was in the archive.
type level struct {
	path string
	dir  *os.File
	// time is set when it is left: whatever is made in it changes that.
	time time.Time
}

// leave sets the times of all directories but the first few, and closes them.
func (a *applier) leave(keep int) (err error) {
	for len(a.at) > keep {
		last := a.at[len(a.at)-1]
		a.at = a.at[:len(a.at)-1]
		err = errors.Join(err, setTime(int(last.dir.Fd()), "", last.time), last.dir.Close())
	}
	return err
}

// directory returns the directory at a path, nothing of which is a link, and whether
// the caller has to close it.
func (a *applier) directory(at string) (dir *os.File, opened bool, err error) {
	inside := len(a.at)
	for inside > 0 && at != a.at[inside-1].path && !strings.HasPrefix(at, a.at[inside-1].path+"/") {
		inside--
	}
	if err := a.leave(inside); err != nil {
		return nil, false, err
	}

	from, rest := a.root, at
	if inside > 0 {
		from, rest = a.at[inside-1].dir, strings.TrimPrefix(strings.TrimPrefix(at, a.at[inside-1].path), "/")
	}
	if (rest == "" || rest == ".") && inside > 0 {
		return from, false, nil
	}
	dir, err = rootpath.OpenUnlinked(from, path.Clean(rest), unix.O_RDONLY|unix.O_DIRECTORY)
	return dir, true, err
}

// place is where a file is to be.
type place struct {
	dir  *os.File
	name string
}

// in calls use with the place of a path that is not the root.
func (a *applier) in(at string, use func(place) error) error {
	dir, opened, err := a.directory(path.Dir(at))
	if err != nil {
		return fmt.Errorf("open its directory: %w", err)
	}
	if opened {
		defer dir.Close()
	}
	return use(place{dir, path.Base(at)})
}

// delete removes a file or directory that may be there.
func (a *applier) delete(at string) error {
	name, err := filePath(strings.TrimPrefix(at, "/"))
	if err != nil {
		return err
	}
	if name == "." {
		return fmt.Errorf("%w: that is the root", ErrInvalid)
	}
	err = a.in(name, func(p place) error { return rootpath.RemoveAll(a.ctx, p.dir, p.name) })
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it is not there
	}
	return err
}

// filePath returns the clean path of a file in the container, "." for its root.
func filePath(name string) (string, error) {
	if strings.HasPrefix(name, "/") || len(name) > maxPath || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: its path has more than %d bytes, a zero, or is absolute", ErrInvalid, maxPath)
	}
	if strings.Count(name, "/") > maxDepth {
		return "", fmt.Errorf("%w: it is more than %d directories deep", ErrInvalid, maxDepth)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: its path leads elsewhere", ErrInvalid)
		}
	}
	// The name is a part of the header, which it would keep in memory.
	return strings.Clone(path.Clean(name)), nil
}

// entry makes what an entry describes.
func (a *applier) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := filePath(h.Name)
	if err != nil {
		return err
	}
	attr, err := a.attributes(h)
	if err != nil {
		return err
	}
	if name == "." && h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root is a directory", ErrInvalid)
	}
	if a.refill != nil {
		return a.refillEntry(h, name, attr, body)
	}
	if h.Typeflag == tar.TypeDir {
		return a.makeDirectory(name, attr)
	}

	return a.in(name, func(p place) error {
		if h.Typeflag == tar.TypeLink {
			return a.link(p, h)
		}
		if err := rootpath.RemoveAll(a.ctx, p.dir, p.name); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg && !isSparse(h) {
			if err := HasSpace(a.root, h.Size); err != nil {
				return err
			}
			return a.regular(p, attr, func(f *os.File) error {
				_, err := io.CopyBuffer(struct{ io.Writer }{f}, body, a.buffer)
				return err
			})
		}
		return special(p, h, attr)
	})
}

// makeDirectory makes a directory in place of what is no directory, and sets the
// attributes of one that is there.
func (a *applier) makeDirectory(name string, attr attributes) error {
	if name != "." {
		err := a.in(name, func(p place) error {
			var st unix.Stat_t
			err := unix.Fstatat(int(p.dir.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return nil
			}
			if err == nil && (a.refill == nil || a.refill.Fresh) {
				err = rootpath.RemoveAll(a.ctx, p.dir, p.name)
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			return unix.Mkdirat(int(p.dir.Fd()), p.name, firstPerm)
		})
		if err != nil {
			return err
		}
	}

	dir, opened, err := a.directory(name)
	if err != nil {
		return err
	}
	if opened {
		a.at = append(a.at, level{name, dir, attr.time})
	}
	return attr.set(dir)
}

// regular makes a regular file where there is nothing, and has fill write its content.
func (a *applier) regular(p place, attr attributes, fill func(*os.File) error) error {
	f, err := rootpath.CreateFile(p.dir, p.name, firstPerm)
	if err != nil {
		return err
	}
	if err = fill(f); err == nil {
		err = attr.set(f)
	}
	if err == nil {
		err = setTime(int(f.Fd()), "", attr.time)
	}
	return errors.Join(err, f.Close())
}

// link gives a file of the container another name. A link is not followed.
func (a *applier) link(p place, h *tar.Header) error {
	target, err := filePath(h.Linkname)
	if err != nil {
		return err
	}
	f, err := rootpath.OpenUnlinked(a.root, target, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", target, err)
	}
	defer f.Close()

	link := func() error { return unix.Linkat(int(f.Fd()), "", int(p.dir.Fd()), p.name, unix.AT_EMPTY_PATH) }
	if err = link(); errors.Is(err, unix.EEXIST) && a.refill == nil {
		if err := rootpath.RemoveAll(a.ctx, p.dir, p.name); err != nil {
			return err
		}
		err = link()
	}
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", target, err)
	}
	return nil
}

// special makes a symbolic link, device or FIFO where there is nothing.
func special(p place, h *tar.Header, attr attributes) error {
	dir := int(p.dir.Fd())
	var kind uint32
	switch h.Typeflag {
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir, p.name); err != nil {
			return err
		}
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	case tar.TypeFifo:
		kind = unix.S_IFIFO
	default:
		return fmt.Errorf("%w: it is of type %q, or sparse", ErrInvalid, h.Typeflag)
	}

	if kind != 0 {
		major, minor := h.Devmajor, h.Devminor
		if kind == unix.S_IFIFO {
			major, minor = 0, 0
		}
		if major < 0 || major > maxMajor || minor < 0 || minor > maxMinor || kind == unix.S_IFCHR && major == 0 && minor == 0 {
			return fmt.Errorf("%w: device number %d:%d", ErrInvalid, major, minor)
		}
		if err := unix.Mknodat(dir, p.name, kind|0o600, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
			return err
		}
	}

	if err := unix.Fchownat(dir, p.name, attr.uid, attr.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if kind != 0 {
		// It was just made here, and is no link.
		if err := unix.Fchmodat(dir, p.name, attr.mode, 0); err != nil {
			return err
		}
	}
	return setTime(dir, p.name, attr.time)
}

// attributes are those of one file, as the disk is to have them.
type attributes struct {
	uid, gid int
	mode     uint32
	time     time.Time
	xattrs   map[string][]byte
}

func (a *applier) attributes(h *tar.Header) (attributes, error) {
	uid, gid, err := a.owner(h.Uid, h.Gid)
	if err != nil {
		return attributes{}, err
	}
	attr := attributes{uid: int(uid), gid: int(gid), mode: uint32(h.Mode) & 0o7777, time: h.ModTime, xattrs: map[string][]byte{}}

	owner := func(uid, gid uint32) (int, int) {
		u, g, e := a.owner(int(uid), int(gid))
		if e != nil {
			err = e
		}
		return int(u), int(g)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		switch {
		case !ok:
		case strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay."):
			return attr, fmt.Errorf("%w: attribute %.100q, which no container can set", ErrInvalid, name)
		case rootpath.IsContent(name):
			attr.xattrs[name] = rootpath.TranslateAttribute(name, []byte(value), owner)
		}
	}
	if err != nil {
		return attr, fmt.Errorf("in an attribute: %w", err)
	}
	return attr, nil
}

// owner translates an owner, which must be one that the kernel can store: to chown,
// the highest number means "unchanged".
func (a *applier) owner(uid, gid int) (uint32, uint32, error) {
	for _, id := range []int{uid, gid} {
		if id < 0 || int64(id) >= math.MaxUint32 {
			return 0, 0, fmt.Errorf("%w: owner %d:%d", ErrInvalid, uid, gid)
		}
	}
	u, g, err := a.ids(uid, gid)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: owner %d:%d: %w", ErrInvalid, uid, gid, err)
	}
	return u, g, nil
}

// set gives an open file or directory its attributes but times.
func (a *attributes) set(f *os.File) error {
	// In this order: a new owner takes set-user-ID bits and capabilities away.
	if err := unix.Fchown(int(f.Fd()), a.uid, a.gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), a.mode); err != nil {
		return err
	}
	for name, value := range a.xattrs {
		err := unix.Fsetxattr(int(f.Fd()), name, value, 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// setTime sets the time of a name in a directory, or that of an open file for "".
func setTime(dir int, name string, t time.Time) error {
	// Later times do not fit into 64 bits of nanoseconds, nor into any file system.
	const limit = 1 << 34
	ts := unix.Timespec{Sec: max(min(t.Unix(), limit), -limit), Nsec: int64(t.Nanosecond())}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, flags)
}
