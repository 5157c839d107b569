package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// visitor holds the callbacks of a walk through a tree of groups, which a
// container may have made as wide and deep, with any names, as it liked.
type visitor struct {
	// enter is called in each group, before those below it.
	enter func(dir *os.File) error
	// pass, if set, may handle a group from its parent, without entering it.
	pass func(parent *os.File, name string) (done bool)
	// leave, if set, is called when all below a group has been seen.
	leave func(parent *os.File, name string)
}

// walk visits a directory of a hierarchy and all below it. It uses two
// descriptors and a list of names, however deep the tree is: a group's path may
// exceed PATH_MAX. Groups removed meanwhile are skipped. Between groups it
// calls stop, if set, whose error ends the walk.
func walk(stop func() error, dir string, v visitor) error {
	fd, err := openRaw(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}

	w := &walker{visitor: v, at: os.NewFile(uintptr(fd), dir)}
	defer func() { w.at.Close() }()
	if err := w.arrive(); err != nil {
		return ignoreGone(err)
	}

	for {
		if stop != nil {
			if err := stop(); err != nil {
				return err
			}
		}

		here := &w.levels[len(w.levels)-1]
		if n := len(here.below); n > 0 {
			name := here.below[n-1]
			here.below = here.below[:n-1]
			if err := w.descend(name); err != nil {
				return err
			}
			continue
		}

		if len(w.levels) == 1 {
			return nil
		}
		if err := w.climb(); err != nil {
			return err
		}
	}
}

type walker struct {
	visitor
	at     *os.File
	levels []level // from the top to the current group
}

type level struct {
	name  string
	below []string // not yet seen
}

// arrive visits the group that the walker has entered.
func (w *walker) arrive() error {
	if w.enter != nil {
		if err := w.enter(w.at); err != nil {
			return err
		}
	}
	names, err := subdirsOf(w.at)
	if err != nil {
		return err
	}
	w.levels = append(w.levels, level{below: names})
	return nil
}

func (w *walker) descend(name string) error {
	if w.pass != nil && w.pass(w.at, name) {
		return nil
	}
	child, err := openAt(w.at, name)
	if err != nil {
		return ignoreGone(err)
	}

	parent := w.at
	w.at = child
	switch err := w.arrive(); {
	case isGone(err):
		child.Close()
		w.at = parent
		return nil
	case err != nil:
		parent.Close()
		return err
	}
	parent.Close()
	w.levels[len(w.levels)-1].name = name

	return nil
}

// climb goes back to the parent. Groups cannot be moved, so ".." is the one
// that the walker came from.
func (w *walker) climb() error {
	parent, err := openAt(w.at, "..")
	if err != nil {
		return err
	}
	w.at.Close()
	w.at = parent
	name := w.levels[len(w.levels)-1].name
	w.levels = w.levels[:len(w.levels)-1]
	if w.leave != nil {
		w.leave(w.at, name)
	}
	return nil
}

func openAt(dir *os.File, name string) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// subdirsOf lists the child groups of a directory. The link count shows when
// there are none, which is nearly always.
func subdirsOf(dir *os.File) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}

	if st.Nlink == 2 {
		return nil, nil
	}
	var names []string
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}

		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// subdirs is subdirsOf for a path.
func subdirs(dir string) ([]string, error) {
	fd, err := openRaw(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	return subdirsOf(f)
}

// removeTree removes a directory of a hierarchy and all below it, waiting until
// ctx ends for exiting processes, unless defunct reports that only such are left.
func removeTree(ctx context.Context, dir string, defunct func(context.Context) bool) error {
	pause, defunctCheck := minPause, firstDefunctCheck
	for look := 0; ; look, pause = look+1, min(2*pause, maxPause) {
		err := unix.Rmdir(dir)
		switch err {
		case nil, unix.ENOENT:
			return nil
		case unix.EINTR:
			continue
		case unix.EBUSY, unix.ENOTEMPTY:
		default:
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}

		below, err := removeBelow(ctx, dir)
		if err != nil && ctx.Err() == nil {
			return ignoreGone(err)
		}

		if below > 0 && unix.Rmdir(dir) == nil {
			return nil
		}
		if look == defunctCheck {
			if defunct(ctx) {
				return fmt.Errorf("rmdir %s: %w", dir, ErrDefunct)
			}
			defunctCheck *= 2
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("rmdir %s: %w: %w", dir, ErrBusy, err)
		}
	}
}

// removeBelow removes the groups below a directory that can be removed, and
// counts them.
func removeBelow(ctx context.Context, dir string) (removed int, err error) {
	remove := func(parent *os.File, name string) bool {
		err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
		if err == nil {
			removed++
		}
		return err == nil || errors.Is(err, unix.ENOENT)
	}
	err = walk(ctx.Err, dir, visitor{pass: remove, leave: func(parent *os.File, name string) { remove(parent, name) }})
	return removed, err
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func ignoreGone(err error) error {
	if isGone(err) {
		return nil
	}
	return err
}
