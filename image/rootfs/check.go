package rootfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// CheckFileSystem reports whether containers can be stored in a directory, by
// mounting an overlay there and changing it. The error wraps [ErrUnsupported] if the
// kind of file system is the reason; others may pass, such as a full disk. oneString
// is that of [Overlay].
func CheckFileSystem(ctx context.Context, dir string, oneString bool) (err error) {
	defer func() {
		switch {
		case errors.Is(err, errNoTypes), errors.Is(err, errNoWhiteouts), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			err = fmt.Errorf("%w: containers cannot be stored in %s, which is on %s: %w; use a directory on ext4, XFS (with ftype=1) or Btrfs",
				ErrUnsupported, dir, fsType(dir), err)
		case err != nil:
			err = fmt.Errorf("check file system of %s: %w", dir, err)
		}
	}()

	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer parent.Close()

	probe, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, rootpath.RemoveAll(context.WithoutCancel(ctx), parent, filepath.Base(probe)))
	}()

	if err := checkEntryTypes(probe); err != nil {
		return err
	}
	return checkOverlay(ctx, probe, oneString)
}

var (
	errNoTypes     = errors.New("its directories do not report file types (d_type)")
	errNoWhiteouts = errors.New("what is removed from an overlay does not disappear")
)

// checkOverlay mounts an overlay whose directories are all below dir.
func checkOverlay(ctx context.Context, dir string, oneString bool) error {
	upper := filepath.Join(dir, "container")
	for _, d := range []string{"lower/removed", "container/" + upperDir, "container/" + workDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), dirPerm); err != nil {
			return err
		}
	}

	o := Overlay{Lower: []string{"lower"}, Empty: "lower", OneString: oneString}
	for path, f := range map[string]**os.File{dir: &o.Layers, upper: &o.Upper} {
		var err error
		if *f, err = os.Open(path); err != nil {
			return err
		}
		defer (*f).Close()
	}

	m, err := o.Mount(ctx)
	if err != nil {
		return err
	}
	defer m.Close()

	at := fdPath(m)
	if err := os.Mkdir(at+"/written", dirPerm); err != nil {
		return err
	}
	if err := os.Remove(at + "/removed"); err != nil {
		return err
	}
	if _, err := os.Lstat(at + "/removed"); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errNoWhiteouts, err)
	}
	return nil
}

// checkEntryTypes reports whether directories say which type their entries have:
// without it an overlay shows whiteouts as files. XFS lacks it if made with
// ftype=0.
func checkEntryTypes(dir string) error {
	const name = "entry"
	if err := os.Mkdir(filepath.Join(dir, name), dirPerm); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	for buf := make([]byte, 4096); ; {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			return errors.Join(err, errors.New("a new entry does not show in its directory"))
		}
		if entry, found := entryType(buf[:n], name); found {
			if entry != unix.DT_DIR {
				return errNoTypes
			}
			return nil
		}
	}
}

// entryType finds the type of a directory entry in what getdents64(2) returned.
func entryType(data []byte, name string) (entry byte, found bool) {
	// struct linux_dirent64: an inode and an offset of 8 bytes each, then these.
	const length, kind, nameFrom = 16, 18, 19
	for len(data) > nameFrom {
		size := int(binary.NativeEndian.Uint16(data[length:]))
		if size <= nameFrom || size > len(data) {
			return 0, false
		}
		text, _, _ := bytes.Cut(data[nameFrom:size], []byte{0})
		if string(text) == name {
			return data[kind], true
		}
		data = data[size:]
	}
	return 0, false
}

// fsType names the file system that a directory is on, for messages.
func fsType(dir string) string {
	const unknown = "an unknown file system"
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &st); err != nil {
		return unknown
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := uint64(m.ID) == st.Mnt_id
		return !found, found
	})
	if err != nil || len(mounts) == 0 {
		return unknown
	}
	return mounts[0].FSType
}
