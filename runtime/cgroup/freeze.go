package cgroup

import (
	"bytes"
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Freezer is the directory with the file that freezes the group.
func (g *Group) Freezer() string { return g.processDir() }

// Freeze freezes the group's processes and returns when all are frozen.
func (g *Group) Freeze(ctx context.Context) error {
	if err := g.setFrozen(ctx, true); err != nil {
		// Half frozen is worse than not frozen.
		return errors.Join(g.fail("freeze", err), g.setFrozen(context.WithoutCancel(ctx), false))
	}
	return nil
}

// Thaw resumes them. A group that is gone, with them, is a success.
func (g *Group) Thaw(ctx context.Context) error {
	if err := ignoreGone(g.setFrozen(ctx, false)); err != nil {
		return g.fail("thaw", err)
	}
	return nil
}

func (g *Group) setFrozen(ctx context.Context, frozen bool) error {
	if g.node.v2 {
		return g.setFrozenV2(ctx, frozen)
	}
	dir, value := g.dir("freezer"), "THAWED"

	if frozen {
		value = "FROZEN"
	}
	var r reader
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		// Writing again also freezes processes forked meanwhile.
		if err := writeFile(dir, "freezer.state", value); err != nil {
			return err
		}

		state, err := r.read(dir, "freezer.state")
		if err != nil || string(bytes.TrimSpace(state)) == value {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func (g *Group) setFrozenV2(ctx context.Context, frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	if err := writeFile(g.dirs[0], "cgroup.freeze", value); err != nil {
		return err
	}

	var r reader
	for pause := minPause; frozen; pause = min(2*pause, maxPause) {
		var done bool
		err := r.table(g.dirs[0], "cgroup.events", func(key string, v uint64) {
			done = done || key == "frozen" && v == 1
		})
		if err != nil || done {
			return err
		}

		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}

	return nil
}

// thawTree thaws the group and those below it, each of which may have been
// frozen separately, perhaps by the container. It does not wait.
func (g *Group) thawTree(ctx context.Context) error {
	name, value := "freezer.state", "THAWED"
	if g.node.v2 {
		name, value = "cgroup.freeze", "0"
	}
	return ignoreGone(walk(ctx.Err, g.processDir(), visitor{enter: func(dir *os.File) error {
		return ignoreGone(writeAt(dir, name, value))
	}}))
}

// writeAt writes to a file of an open directory.
func writeAt(dir *os.File, name, value string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return writeRaw(fd, name, value)
}
