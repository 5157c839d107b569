package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// Overlay describes a stack of layers.
type Overlay struct {
	// Layers is the directory that holds all layers.
	Layers *os.File
	// Lower are the layers' trees as paths below Layers, the topmost first.
	Lower []string
	// Empty is a tree below Layers with nothing in it.
	Empty string
	// Upper is the directory that holds upper and work; nil makes the stack read-only.
	Upper *os.File
	// UserNS, if not nil, is the user namespace that file owners are mapped to:
	// owner 0 is its root.
	UserNS *os.File
	// Label, if not empty, is the SELinux label of all files.
	Label string
	// Attr are MOUNT_ATTR_* bits of the mount.
	Attr int
	// OneString passes the layers as one option, which works on all kernels.
	// Without it they are passed one by one, if the kernel [AppendsLayers].
	OneString bool
}

// Mount makes the overlay and returns it as a detached mount.
func (o Overlay) Mount(ctx context.Context) (*os.File, error) {
	if o.OneString {
		return o.mountString()
	}
	if o.UserNS == nil {
		return o.stack(o.Layers, o.Upper)
	}

	// One clone of the layers' common parent maps the owners of all of them.
	mapped, err := cloneMapped(o.Layers, o.UserNS)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	defer mapped.Close()

	m, err := o.stack(mapped, o.Upper)
	if errors.Is(err, unix.EINVAL) {
		return o.stackAttached(ctx)
	}
	return m, err
}

// stackAttached makes an ID-mapped overlay on kernels before Linux 6.15, where the
// layers must be attached in the caller's mount namespace: it uses a temporary
// private one. The attempt that the kernel refused has marked the work directory
// as used by a volatile mount; without a fresh one this attempt would fail too.
func (o Overlay) stackAttached(ctx context.Context) (m *os.File, err error) {
	if o.Upper != nil {
		if err := renewWork(ctx, o.Upper); err != nil {
			return nil, fmt.Errorf("renew work directory: %w", err)
		}
	}

	err = o.inNamespace(func(layers, upper *os.File) (err error) {
		m, err = o.stack(layers, upper)
		return err
	})
	return m, err
}

// inNamespace calls f in a private mount namespace with the layers, ID-mapped if
// there is a user namespace, and the upper directory, all attached in it.
func (o Overlay) inNamespace(f func(layers, upper *os.File) error) error {
	err := inPrivateNamespace(func() error {
		layers, err := os.Open(o.Layers.Name())
		if err != nil {
			return err
		}
		defer layers.Close()

		if o.UserNS != nil {
			mapped, err := attachMapped(layers, o.UserNS)
			if err != nil {
				return err
			}
			defer mapped.Close()
			layers = mapped
		}

		var upper *os.File
		if o.Upper != nil {
			if upper, err = os.Open(o.Upper.Name()); err != nil {
				return err
			}
			defer upper.Close()
		}
		return f(layers, upper)
	})
	if err != nil {
		return fmt.Errorf("mount overlay in a namespace of its own: %w", err)
	}

	return nil
}

// attachMapped mounts a clone of layers, mapped to the users of userns, on top of
// layers.
func attachMapped(layers, userns *os.File) (*os.File, error) {
	mapped, err := cloneMapped(layers, userns)
	if err != nil {
		return nil, err
	}

	const here = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(mapped.Fd()), "", int(layers.Fd()), "", here); err != nil {
		mapped.Close()
		return nil, fmt.Errorf("attach layers: %w", err)
	}
	return mapped, nil
}

// stack mounts the layers in the directory layers, with upper on top if it is not
// nil.
func (o Overlay) stack(layers, upper *os.File) (*os.File, error) {
	return o.create(upper, func(fs int) error {
		base := fdPath(layers) + "/"
		for i, l := range o.lower() {
			if err := unix.FsconfigSetString(fs, "lowerdir+", base+l); err != nil {
				return fmt.Errorf("lower layer %d: %w", i, err)
			}
		}
		return nil
	})
}

// create makes a mount with upper on top of the layers that setLower sets in the
// file system context.
func (o Overlay) create(upper *os.File, setLower func(fs int) error) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: fsopen: %w", err)
	}

	fs := os.NewFile(uintptr(fd), "overlay")
	defer fs.Close()

	if err := setLower(fd); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	for _, opt := range o.options(upper) {
		if err := opt.set(fd); err != nil {
			return nil, fmt.Errorf("mount overlay: %s: %w", opt.key, err)
		}
	}

	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("mount overlay: create: %w%s", err, contextLog(fs))
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, o.Attr)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: fsmount: %w", err)
	}

	return os.NewFile(uintptr(m), "overlay"), nil
}

// lower returns the layers below the upper directory, if any.
func (o Overlay) lower() []string {
	if o.Upper == nil && len(o.Lower) < 2 {
		// Overlayfs requires two layers if none of them is writable.
		return append(o.Lower[:len(o.Lower):len(o.Lower)], o.Empty)
	}
	return o.Lower
}

// option is a mount option; without a value it is a flag.
type option struct {
	key, value string
	// dispensable: it is left out if the kernel does not know it.
	dispensable bool
}

// options returns all options but the layers.
func (o Overlay) options(upper *os.File) []option {
	// Off even if it is the kernel's default: an index ties an upper directory to
	// the layers of its first mount. No two mounts share an upper directory, so
	// that hard links are consistent without it.
	list := []option{{key: "index", value: "off", dispensable: true}}
	if o.Label != "" {
		list = append(list, option{key: "context", value: o.Label})
	}
	if upper == nil {
		return list
	}

	base := fdPath(upper) + "/"
	// Off even if they are the kernel's defaults: a writable layer has all of what
	// was changed, not references to files below, so that it can be read by itself.
	list = append(list, option{key: "redirect_dir", value: "off", dispensable: true}, option{key: "metacopy", value: "off", dispensable: true})
	return append(list, option{key: "upperdir", value: base + upperDir}, option{key: "workdir", value: base + workDir},
		// After a power cut, what a container wrote is discarded. Without this option
		// the unmount of every container would sync the whole file system.
		option{key: "volatile", dispensable: true})
}

// set sets the option in a file system context.
func (opt option) set(fs int) error {
	var err error
	if opt.value == "" {
		err = unix.FsconfigSetFlag(fs, opt.key)
	} else {
		err = unix.FsconfigSetString(fs, opt.key, opt.value)
	}
	if opt.dispensable && errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// String is the option's form for mount(2). A label has commas.
func (opt option) String() string {
	switch {
	case opt.value == "":
		return opt.key
	case strings.Contains(opt.value, ","):
		return opt.key + `="` + opt.value + `"`
	}
	return opt.key + "=" + opt.value
}

// cloneMapped returns a detached clone of dir whose file owners are mapped to the
// users of userns.
func cloneMapped(dir, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone layers: %w", err)
	}

	f := os.NewFile(uintptr(fd), "layers")
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd()),
	})
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: ID-mapped mounts of this file system: %w", ErrUnsupported, err)
		}
		return nil, fmt.Errorf("map owners of layers: %w", err)
	}

	return f, nil
}

// SubPath returns a detached clone of path inside the detached mount. Links are
// resolved inside it.
func SubPath(mount *os.File, path string) (*os.File, error) {
	clone, err := cloneSubPath(mount, path)
	if errors.Is(err, unix.EINVAL) && !errors.Is(err, ErrSubPath) {
		return subPathAttached(mount, path)
	}
	return clone, err
}

// subPathAttached is SubPath for kernels before Linux 6.15, where only attached
// mounts can be cloned. It attaches mount, which cannot be used afterwards.
func subPathAttached(mount *os.File, path string) (clone *os.File, err error) {
	err = inPrivateNamespace(func() error {
		if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach mount: %w", err)
		}
		clone, err = cloneSubPath(mount, path)
		return err
	})
	return clone, err
}

func cloneSubPath(mount *os.File, path string) (*os.File, error) {
	at, err := rootpath.Open(mount, path, unix.O_PATH)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSubPath, err)
	}
	defer at.Close()

	var st unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &st); err != nil {
		return nil, err
	}

	if t := st.Mode & unix.S_IFMT; t != unix.S_IFDIR && t != unix.S_IFREG {
		return nil, fmt.Errorf("%w: %s is neither a directory nor a regular file", ErrSubPath, path)
	}
	fd, err := unix.OpenTree(int(at.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone %s: %w", path, err)
	}

	return os.NewFile(uintptr(fd), path), nil
}

// contextLog returns the kernel's messages about a refused configuration.
func contextLog(fs *os.File) string {
	var lines []string
	buf := make([]byte, 512)
	for range 8 {
		n, err := unix.Read(int(fs.Fd()), buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	if len(lines) == 0 {
		return ""
	}
	return " (" + strings.Join(lines, "; ") + ")"
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
