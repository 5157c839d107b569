package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
	"crisp/runtime/thread"
)

const (
	// maxOption is the longest string that fsconfig takes.
	maxOption = 255
	// maxLayers is the limit of overlayfs.
	maxLayers = 500
)

// AppendsLayers reports whether the kernel takes the layers of an overlay one by
// one (Linux 6.7). The error says why it could not be asked.
func AppendsLayers() (bool, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("probe overlay: %w", err)
	}
	defer unix.Close(fs)

	// Before Linux 6.5 overlayfs has no parser of its own for single options:
	// any is accepted here, to be refused when the file system is created.
	if unix.FsconfigSetFlag(fs, "no-such-option") == nil {
		return false, nil
	}
	err = unix.FsconfigSetString(fs, "lowerdir+", "/")
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return false, fmt.Errorf("probe overlay: %w", err)
	}
	return err == nil, nil
}

// mountString makes the overlay with its layers in one option. Before Linux 6.5
// the kernel resolves the paths in it when it creates the file system, so working
// directory and descriptors must stay until then.
func (o Overlay) mountString() (m *os.File, err error) {
	if n := len(o.lower()); n > maxLayers {
		return nil, fmt.Errorf("%w: an overlay of %d layers, more than %d", ErrUnsupported, n, maxLayers)
	}

	mount := o.stackString
	if o.UserNS == nil { // mapped layers have to be attached
		err = thread.Apart(unix.CLONE_FS, func() (err error) {
			m, err = o.stackString(o.Layers, o.Upper)
			return err
		})
		if !errors.Is(err, errTooLong) {
			return m, err
		}
		mount = o.attachString
	}

	err = o.inNamespace(func(layers, upper *os.File) (err error) {
		if m, err = mount(layers, upper); errors.Is(err, errTooLong) {
			m, err = o.attachString(layers, upper)
		}
		return err
	})
	if o.UserNS != nil && errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: ID-mapped layers of an overlay, which pods with a user namespace need (Linux 5.19): %w", ErrUnsupported, err)
	}
	return m, err
}

// errTooLong means that the layers' names do not fit into one option of fsconfig.
var errTooLong = errors.New("too many layers for one option")

// stackString is [Overlay.stack] with the layers as one string. It changes the
// working directory of its thread.
func (o Overlay) stackString(layers, upper *os.File) (*os.File, error) {
	names, release, err := descriptors(layers, o.lower())
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	defer release()

	all := strings.Join(names, ":")
	if len(all) > maxOption {
		return nil, errTooLong
	}
	return o.create(upper, func(fs int) error {
		if err := unix.FsconfigSetString(fs, "lowerdir", all); err != nil {
			return fmt.Errorf("lower layers: %w", err)
		}
		return nil
	})
}

// attachString makes the overlay by mount(2), whose options may fill a page, in a
// private mount namespace, and returns a detached clone of it.
func (o Overlay) attachString(layers, upper *os.File) (*os.File, error) {
	names, release, err := descriptors(layers, o.lower())
	if err != nil {
		return nil, err
	}
	defer release()

	options := []string{"lowerdir=" + strings.Join(names, ":")}
	for _, opt := range o.options(upper) {
		options = append(options, opt.String())
	}
	data := strings.Join(options, ",")
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("%w: %d layers whose options do not fit into a page", ErrUnsupported, len(names))
	}

	// It hides nothing that is needed: an empty directory.
	target := filepath.Join(o.Layers.Name(), o.Empty)
	if err := unix.Mount("overlay", target, "overlay", 0, data); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone overlay: %w", err)
	}

	m := os.NewFile(uintptr(fd), "overlay")
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: uint64(o.Attr)}); err != nil {
		m.Close()
		return nil, fmt.Errorf("set attributes of overlay: %w", err)
	}
	return m, nil
}

// descriptors opens the layers and enters the directory of descriptors, in which a
// layer's name is a number: fsconfig's strings are too short for anything longer.
// The layers stay open until release.
func descriptors(layers *os.File, lower []string) (names []string, release func(), err error) {
	var files []*os.File
	release = func() {
		for _, f := range files {
			f.Close()
		}
	}

	for _, l := range lower {
		f, err := rootpath.Open(layers, l, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("open layer: %w", err)
		}
		files = append(files, f)
		names = append(names, strconv.Itoa(int(f.Fd())))
	}

	if err := unix.Chdir("/proc/thread-self/fd"); err != nil {
		release()
		return nil, nil, err
	}
	return names, release, nil
}
