package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses between checks of a group, and how long freezing may take before its
// processes are killed anyway.
const (
	minPause  = 200 * time.Microsecond
	maxPause  = 10 * time.Millisecond
	freezeMax = 200 * time.Millisecond
	// roundsPerKill checks take about 30 ms.
	roundsPerKill = 8
	// firstDefunctCheck is the check, a tenth of a second after the first, at which
	// processes are taken into account that ended and stay: reading /proc takes longer.
	firstDefunctCheck = 16
)

// Kill kills all processes in the group and in the groups below it, and returns
// when none is left or ctx ends ([ErrBusy]). A group that does not exist is
// empty. Processes that have ended do not count, though they may keep the group
// from being removed ([ErrDefunct]).
//
// Nothing delays their exit: frozen processes are thawed, CPU quotas are lifted
// for good, and a process held back by a parent group, which this package must
// not change, is moved out of it once SIGKILL is pending.
func (g *Group) Kill(ctx context.Context) error {
	k := killing{g: g}
	defer k.restore()
	pause, defunctCheck := minPause, firstDefunctCheck
	for look := 0; ; look++ {
		some, err := g.populated(ctx)
		if err == nil && !some {
			return nil
		}

		// Killing takes time: repeating it at once would only delay processes
		// that are exiting.
		if err == nil && look%roundsPerKill == 0 {
			err = k.round(ctx, look/roundsPerKill)
		}
		if err != nil && ctx.Err() == nil {
			return g.fail("kill", err)
		}

		if look == defunctCheck {
			if g.defunct(ctx) {
				return nil
			}
			defunctCheck *= 2
		}

		if g.waitEmpty(ctx, pause); ctx.Err() != nil {
			return fmt.Errorf("kill cgroup %s: %w: %w", g.path, ErrBusy, ctx.Err())
		}
		pause = min(2*pause, maxPause)
	}
}

// errFound ends a walk at the first process.
var errFound = errors.New("found")

// Populated reports whether there are processes in the group or below it, also
// those that have ended and of which the kernel does not let go.
func (g *Group) Populated(ctx context.Context) (bool, error) {
	some, err := g.populated(ctx)
	if err != nil {
		return some, g.fail("find processes of", err)
	}
	return some, nil
}

// populated reports whether there are processes in the group or below it, in
// any hierarchy: a container with write access to its groups may have moved
// some in just one.
func (g *Group) populated(ctx context.Context) (bool, error) {
	for i, dir := range g.dirs {
		some, err := false, error(nil)
		if g.in[i].unified() {
			some, err = populatedV2(dir)
		} else {
			some, err = populatedV1(ctx, dir)
		}
		if some || err != nil && !isGone(err) {
			return some, err
		}
	}
	return false, nil
}

func populatedV2(dir string) (some bool, err error) {
	var r reader
	err = r.table(dir, "cgroup.events", func(key string, v uint64) { some = some || key == "populated" && v != 0 })
	return some, err
}

func populatedV1(ctx context.Context, dir string) (bool, error) {
	err := walk(ctx.Err, dir, visitor{enter: func(dir *os.File) error {
		pids, err := pidsIn(dir)
		if err == nil && len(pids) > 0 {
			err = errFound
		}
		return err
	}})
	if errors.Is(err, errFound) {
		return true, nil
	}
	return false, err
}

// waitEmpty waits for pause, less if the kernel notifies that the group has become empty.
func (g *Group) waitEmpty(ctx context.Context, pause time.Duration) {
	if !g.node.v2 {
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		return
	}

	fd, err := openRaw(g.dirs[0]+"/cgroup.events", unix.O_RDONLY)
	if err != nil {
		return
	}
	defer unix.Close(fd)

	// Reading arms the poll.
	var buf [64]byte
	if n, err := unix.Read(fd, buf[:]); err != nil || bytes.Contains(buf[:n], []byte("populated 0")) {
		return
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, int(maxPause/time.Millisecond))
}
