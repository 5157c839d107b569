package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/rootpath"
)

// cover records what a tmpfs takes over from its target: the permissions, and
// with tmpcopyup the content.
func (l *landing) cover(ctx context.Context, i int, s *specs.Spec, at string, o *plan.Options) error {
	m := &s.Mounts[i]
	hasMode := func(opt string) bool { return strings.HasPrefix(opt, "mode=") }
	if m.Type != "tmpfs" || slices.ContainsFunc(m.Options, hasMode) && !slices.Contains(m.Options, "tmpcopyup") {
		return nil
	}

	covered, mode, err := l.covered(at)
	if err != nil {
		return err
	}

	if covered != nil {
		defer covered.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(covered.Fd()), &st); err != nil {
			return err
		}
		perm := st.Mode & 0o7777
		mode = &perm
	}

	if mode != nil {
		if o.TargetModes == nil {
			o.TargetModes = map[int]uint32{}
		}
		o.TargetModes[i] = *mode
	}

	options, wanted, err := plan.CopyUp(m)
	if err != nil || !wanted || covered == nil {
		return err
	}

	if o.CopiedUp == nil {
		o.CopiedUp = map[int]string{}
	}
	o.CopiedUp[i] = "copied/" + strconv.Itoa(i)
	l.made[o.CopiedUp[i]], err = copyUp(ctx, covered, options, s.Linux.MountLabel)
	return err
}

// covered opens the directory at a path, nil if there is none. Of a file system
// that does not exist yet, only the mode of its root may be known.
func (l *landing) covered(at string) (*os.File, *uint32, error) {
	from, rel := l.root, at
	for _, m := range slices.Backward(l.mounts) {
		if !inside(at, []string{m.at}) {
			continue
		}
		if m.source == "" {
			if at != m.at {
				return nil, nil, nil
			}
			return nil, m.mode, nil
		}

		f, err := l.open(&m)
		if err != nil {
			return nil, nil, err
		}

		if from, rel = f, at[len(m.at):]; f == nil {
			return nil, nil, nil // opening the plan's inputs returns the error
		}
		break
	}

	f, err := rootpath.Open(from, "."+rel, unix.O_RDONLY|unix.O_DIRECTORY)
	for _, none := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES} {
		if errors.Is(err, none) {
			return nil, nil, nil
		}
	}

	return f, nil, err
}

// modeOf is the future mode of the root of a tmpfs.
func modeOf(m *specs.Mount, covered *uint32) *uint32 {
	if m.Type != "tmpfs" {
		return nil
	}
	mode := uint32(0o1777)

	if covered != nil {
		mode = *covered
	}
	for _, opt := range m.Options {
		if value, ok := strings.CutPrefix(opt, "mode="); ok {
			if n, err := strconv.ParseUint(value, 8, 32); err == nil {
				mode = uint32(n)
			}
		}
	}

	return &mode
}

// copyUp creates a tmpfs with a copy of a directory's content, and its owner
// and mode unless the options set others.
func copyUp(ctx context.Context, from *os.File, options map[string]string, label string) (*os.File, error) {
	if label != "" {
		options["context"] = label
	}
	f, err := newTmpfs(options)
	if err != nil {
		return nil, err
	}
	if err := fillTmpfs(ctx, f, from, options); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy covered directory: %w", err)
	}
	return f, nil
}

func fillTmpfs(ctx context.Context, f, from *os.File, options map[string]string) error {
	root, err := rootpath.Open(f, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer root.Close()

	var asked unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &asked); err != nil {
		return err
	}

	same := func(uid, gid uint32) (int, int) { return int(uid), int(gid) }
	if err := rootpath.CopyTree(ctx, from, root, same); err != nil {
		return err
	}

	uid, gid := -1, -1
	if options["uid"] != "" {
		uid = int(asked.Uid)
	}
	if options["gid"] != "" {
		gid = int(asked.Gid)
	}
	if err := root.Chown(uid, gid); err != nil {
		return err
	}

	if options["mode"] == "" {
		return nil
	}
	return unix.Fchmod(int(root.Fd()), asked.Mode&0o7777)
}

// newTmpfs creates a detached tmpfs.
func newTmpfs(options map[string]string) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)

	for key, value := range options {
		set := func() error { return unix.FsconfigSetString(fs, key, value) }
		if value == "" {
			set = func() error { return unix.FsconfigSetFlag(fs, key) }
		}
		if err := set(); err != nil {
			return nil, fmt.Errorf("tmpfs: option %s=%s: %w", key, value, err)
		}
	}

	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}

	return os.NewFile(uintptr(fd), "tmpfs"), nil
}
