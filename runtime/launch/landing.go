package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/rootpath"
)

// maxLinks is the kernel's bound on the links of one path lookup.
const maxLinks = 40

// landing resolves mount destinations before any mount is made. It follows
// links of the image and of volumes through the root file system and the future
// mounts. The result may be outdated if a volume is changed meanwhile: the plan
// opens each target again, confined to the container's root and outside procfs.
type landing struct {
	root   *os.File
	held   Held
	mounts []mounted
	mine   []*os.File
	// made are file systems for the plan, by their names in it.
	made Held
}

// mounted is a file system with its resolved destination.
type mounted struct {
	at string
	// source is a host path or the name of a held file system, "" for a new
	// one, which has no links.
	source string
	held   bool
	file   *os.File // nil until it is opened
	// mode is the mode of a new file system's root, if known.
	mode *uint32
}

// land returns the spec with its mounts in the order in which to make them, and
// sets the resolved destinations and working directory in o. It also returns
// file systems created for the plan, which the caller closes.
func land(ctx context.Context, s *specs.Spec, o *plan.Options, h Held) (_ *specs.Spec, made Held, err error) {
	if s.Root == nil || s.Process == nil {
		return s, nil, nil // the plan's builder returns the error
	}
	l := &landing{held: h, root: h[s.Root.Path], made: Held{}}
	defer func() { l.close(err) }()
	if s, err = l.all(ctx, s, o); err != nil {
		return nil, nil, err
	}
	return s, l.made, nil
}

func (l *landing) all(ctx context.Context, s *specs.Spec, o *plan.Options) (*specs.Spec, error) {
	if strings.HasPrefix(s.Root.Path, "/") {
		var err error
		if l.root, err = openFile(s.Root.Path, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return nil, fmt.Errorf("root file system: %w", err)
		}
		l.mine = append(l.mine, l.root)
	}

	if l.root == nil {
		return nil, fmt.Errorf("%s: %w", s.Root.Path, ErrNotHeld)
	}

	if o.AnyOrder {
		sorted := *s
		var err error
		if sorted.Mounts, err = l.sorted(s.Mounts); err != nil {
			return nil, err
		}
		s = &sorted
	}

	o.Targets = make([]string, 0, len(s.Mounts))
	for i := range s.Mounts {
		at, err := l.find(s.Mounts[i].Destination)
		if err != nil {
			return nil, fmt.Errorf("resolve mount target %s: %w", s.Mounts[i].Destination, err)
		}

		o.Targets = append(o.Targets, at)
		if err := l.cover(ctx, i, s, at, o); err != nil {
			return nil, fmt.Errorf("examine mount target %s: %w", s.Mounts[i].Destination, err)
		}

		l.add(&s.Mounts[i], at)
		var covered *uint32
		if mode, ok := o.TargetModes[i]; ok {
			covered = &mode
		}
		l.mounts[i].mode = modeOf(&s.Mounts[i], covered)
	}

	var err error
	if o.WorkingDir, err = l.find(s.Process.Cwd); err != nil {
		return nil, fmt.Errorf("resolve working directory %s: %w", s.Process.Cwd, err)
	}
	return s, nil
}

// sorted puts mounts before those below them, by destinations resolved in the
// root file system, and otherwise keeps the order.
func (l *landing) sorted(list []specs.Mount) ([]specs.Mount, error) {
	type placed struct {
		depth int
		mount specs.Mount
	}

	all := make([]placed, 0, len(list))
	for i := range list {
		at, err := l.find(list[i].Destination)
		if err != nil {
			return nil, fmt.Errorf("resolve mount target %s: %w", list[i].Destination, err)
		}
		all = append(all, placed{strings.Count(at, "/"), list[i]})
	}

	slices.SortStableFunc(all, func(x, y placed) int { return x.depth - y.depth })

	out := make([]specs.Mount, 0, len(all))
	for i := range all {
		out = append(out, all[i].mount)
	}
	return out, nil
}

// add makes later paths resolve into a mount.
func (l *landing) add(m *specs.Mount, at string) {
	n := mounted{at: at}
	switch bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind"); {
	case bind:
		n.source = m.Source
	case m.Type == "image":
		n.source, n.held = m.Source, true
	}
	l.mounts = append(l.mounts, n)
}

// find resolves a path. Paths in file systems of the runtime itself are not
// changed: an image's links are not followed there.
func (l *landing) find(name string) (string, error) {
	name = path.Join("/", name)
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if name == top || strings.HasPrefix(name, top+"/") {
			return name, nil
		}
	}
	if linked, err := l.linked(name); err != nil || !linked {
		return name, err
	}
	return l.walk(name)
}

// linked reports whether a path may contain a link.
func (l *landing) linked(name string) (bool, error) {
	for i := range l.mounts {
		if inside(name, []string{l.mounts[i].at}) {
			return true, nil
		}
	}

	f, err := rootpath.OpenUnlinked(l.root, name, unix.O_PATH)
	switch {
	case err == nil:
		return false, f.Close()
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case errors.Is(err, unix.ELOOP):
		return true, nil
	}

	return false, err
}

// walk follows the links of a path one by one.
func (l *landing) walk(name string) (string, error) {
	at, rest, links := "/", strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]

		// A link's target is relative to its directory, so dots matter.
		if part == "" || part == "." || part == ".." {
			at = path.Join(at, part)
			continue
		}

		next := path.Join(at, part)
		text, err := l.readlink(next)
		if err != nil {
			return "", err
		}

		if text == "" {
			at = next
			continue
		}

		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if strings.HasPrefix(text, "/") {
			at = "/"
		}
		rest = append(strings.Split(text, "/"), rest...)
	}

	return at, nil
}

// readlink returns a link's target, "" if the path is not a link.
func (l *landing) readlink(name string) (string, error) {
	from, rel, err := l.in(name)
	if err != nil || from == nil || rel == "" {
		return "", err
	}
	text, err := rootpath.Readlink(from, rel)
	for _, none := range []error{unix.EINVAL, unix.ENOENT, unix.ENOTDIR, unix.EACCES} {
		if errors.Is(err, none) {
			return "", nil
		}
	}
	return text, err
}

// in returns the mount at a path, nil for a new file system, and the path in it.
func (l *landing) in(name string) (*os.File, string, error) {
	for i := len(l.mounts) - 1; i >= 0; i-- {
		m := &l.mounts[i]
		if !inside(name, []string{m.at}) {
			continue
		}
		if name == m.at || m.source == "" {
			return nil, "", nil
		}
		f, err := l.open(m)
		return f, strings.TrimPrefix(name, m.at+"/"), err
	}
	return l.root, strings.TrimPrefix(name, "/"), nil
}

func (l *landing) open(m *mounted) (*os.File, error) {
	if m.held {
		return l.held[m.source], nil
	}
	if m.file == nil {
		var err error
		m.file, err = openFile(m.source, unix.O_PATH)
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("open %s: %w", m.source, ErrNoSource)
		}
		if err != nil {
			return nil, err
		}
		l.mine = append(l.mine, m.file)
	}

	return m.file, nil
}

func (l *landing) close(err error) {
	for _, f := range l.mine {
		f.Close()
	}
	if err == nil {
		return
	}
	for _, f := range l.made {
		f.Close()
	}
}
