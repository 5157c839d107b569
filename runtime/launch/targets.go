package launch

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/rootpath"
)

// makeTargets creates the mount targets in the root file system itself; the
// plan creates those inside other mounts.
func (in *inputs) makeTargets(p *plan.Plan, s *specs.Spec, o plan.Options) error {
	root := in.input(p, func(i *plan.Input) bool { return i.Path == s.Root.Path })
	if root == nil {
		return fmt.Errorf("root file system: %w", ErrNotHeld)
	}

	own := RootOwner(s)
	var made []string
	for i := range s.Mounts {
		dest, target := path.Join("/", s.Mounts[i].Destination), o.Targets[i]
		if inside(target, made) {
			continue
		}

		dir, err := in.isDir(p, &s.Mounts[i], "mount "+dest)
		if err != nil {
			return err
		}

		if err := rootpath.CreateTarget(root, target, dir, own); err != nil {
			return fmt.Errorf("make mount target %s: %w", dest, err)
		}
		made = append(made, target)
	}
	if cwd := o.WorkingDir; cwd != "/" && !inside(cwd, made) {
		dir, err := rootpath.MkdirAll(root, cwd, 0o755, own)
		if err != nil {
			return fmt.Errorf("make working directory %s: %w", cwd, err)
		}
		return dir.Close()
	}

	return nil
}

// inside reports whether a path is one of the targets made or below one.
func inside(p string, made []string) bool {
	for _, m := range made {
		if p == m || strings.HasPrefix(p, m+"/") {
			return true
		}
	}
	return false
}

func (in *inputs) input(p *plan.Plan, is func(*plan.Input) bool) *os.File {
	for i := range p.Inputs {
		if is(&p.Inputs[i]) {
			return in.files[i]
		}
	}
	return nil
}

// isDir reports whether the root of a mount is a directory, as of all but binds
// and image volumes.
func (in *inputs) isDir(p *plan.Plan, m *specs.Mount, name string) (bool, error) {
	f := in.input(p, func(i *plan.Input) bool { return i.Name == name && i.Kind == plan.InputMount })
	if m.Type == "image" {
		f = in.held[m.Source]
	}
	if f == nil {
		return true, nil
	}
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("%s: examine source: %w", name, err)
	}
	return info.IsDir(), nil
}

// RootOwner is the container's root as the host sees it.
func RootOwner(s *specs.Spec) rootpath.Owner {
	return rootpath.Owner{UID: int(plan.HostID(s.Linux.UIDMappings, 0)), GID: int(plan.HostID(s.Linux.GIDMappings, 0))}
}

// giveStreams makes the process's user the owner of its standard streams, so
// that it can reopen them as /dev/stdout and /dev/stderr.
func giveStreams(h Held, s *specs.Spec, p *specs.Process) error {
	uid := plan.HostID(s.Linux.UIDMappings, p.User.UID)
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		f := h[name]
		if f == nil {
			continue
		}

		var st unix.Stat_t
		fd := int(f.Fd())
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("examine %s: %w", name, err)
		}

		if st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Uid == uid {
			continue // files of the host keep their owner
		}
		if err := unix.Fchown(fd, int(uid), -1); err != nil {
			return fmt.Errorf("change owner of %s to user %d: %w", name, uid, err)
		}
	}

	return nil
}
