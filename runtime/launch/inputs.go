package launch

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// inputs opens the inputs of one plan.
type inputs struct {
	l    *Launcher
	held Held
	spec *specs.Spec
	// files are the inputs in the plan's order.
	files []*os.File
	// mine are the files to close when the plan has run.
	mine []*os.File
	// extra are the launcher's own descriptors, by the name of a held one.
	extra Held
}

func (l *Launcher) inputs(h Held, s *specs.Spec) *inputs {
	return &inputs{l: l, held: h, spec: s, extra: Held{}}
}

// own adds a descriptor to close with the others.
func (in *inputs) own(name string, f *os.File) {
	in.extra[name] = f
	in.mine = append(in.mine, f)
}

func (in *inputs) close() {
	for _, f := range in.mine {
		f.Close()
	}
}

func (in *inputs) open(ctx context.Context, p *plan.Plan) error {
	for i := range p.Inputs {
		f, err := in.one(ctx, &p.Inputs[i])
		if err != nil {
			return fmt.Errorf("%s: %s: %w", p.Name, p.Inputs[i].Name, err)
		}
		in.files = append(in.files, f)
	}
	return nil
}

func (in *inputs) one(ctx context.Context, i *plan.Input) (*os.File, error) {
	switch i.Kind {
	case plan.InputHeld:
		if f := in.extra[i.Path]; f != nil {
			return f, nil
		}
		if f := in.held[i.Path]; f != nil {
			return f, nil
		}
		return nil, ErrNotHeld
	case plan.InputProc:
		return in.l.procfs()
	case plan.InputFile:
		f, err := openFile(i.Path, i.OpenFlags)
		return in.keep(f, err)
	default:
		f, err := openMount(i)
		if _, err := in.keep(f, err); err != nil {
			return nil, err
		}
		return f, in.mapIDs(ctx, i, f)
	}
}

func (in *inputs) keep(f *os.File, err error) (*os.File, error) {
	if err == nil {
		in.mine = append(in.mine, f)
	}
	return f, err
}

// openFile opens a file without Go's poller, which would make a device or pipe
// non-blocking.
func openFile(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openMount clones the mount at a host path and sets its attributes.
func openMount(i *plan.Input) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if i.Recursive {
		flags |= unix.AT_RECURSIVE
	}

	fd, err := unix.OpenTree(unix.AT_FDCWD, i.Path, flags)
	if err == unix.ENOENT {
		return nil, fmt.Errorf("clone mount at %s: %w", i.Path, ErrNoSource)
	}
	if err != nil {
		return nil, fmt.Errorf("clone mount at %s: %w", i.Path, err)
	}

	f := os.NewFile(uintptr(fd), i.Path)
	top := unix.MountAttr{Attr_set: i.AttrSet, Attr_clr: i.AttrClear}
	all := unix.MountAttr{Attr_set: i.AttrSetRecursive, Propagation: i.Propagation}
	for _, a := range []struct {
		attr  unix.MountAttr
		flags uint
	}{{all, unix.AT_RECURSIVE}, {top, 0}} {
		if a.attr == (unix.MountAttr{}) {
			continue
		}
		if err := unix.MountSetattr(fd, "", a.flags|unix.AT_EMPTY_PATH, &a.attr); err != nil {
			f.Close()
			return nil, fmt.Errorf("set options of mount at %s: %w", i.Path, err)
		}
	}

	return f, nil
}

// mapIDs sets the ID mappings of a detached mount.
func (in *inputs) mapIDs(ctx context.Context, i *plan.Input, f *os.File) error {
	if len(i.UIDMap) == 0 && len(i.GIDMap) == 0 {
		return nil
	}
	userns, err := in.usernsFor(ctx, i)
	if err != nil {
		return fmt.Errorf("make id mappings: %w", err)
	}

	flags := uint(unix.AT_EMPTY_PATH)
	if i.IDMapRecursive {
		flags |= unix.AT_RECURSIVE
	}

	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	switch err := unix.MountSetattr(int(f.Fd()), "", flags, &attr); err {
	case nil:
		return nil
	case unix.EINVAL:
		return fmt.Errorf("map ids of %s: %w", i.Path, ErrNoIDMap)
	default:
		return fmt.Errorf("map ids of %s: %w", i.Path, err)
	}
}

// usernsFor returns a user namespace with an input's mappings: the pod's own
// if it has them.
func (in *inputs) usernsFor(ctx context.Context, i *plan.Input) (*os.File, error) {
	if ns := in.held["ns/user"]; ns != nil && in.spec != nil &&
		slices.Equal(in.spec.Linux.UIDMappings, i.UIDMap) && slices.Equal(in.spec.Linux.GIDMappings, i.GIDMap) {
		return ns, nil
	}
	return in.l.mapping(ctx, i.UIDMap, i.GIDMap)
}
