package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses between looks at a group, and the time that freezing may take before
// its processes are killed anyway.
const (
	minPause  = 200 * time.Microsecond
	maxPause  = 10 * time.Millisecond
	freezeMax = 200 * time.Millisecond
	// roundsPerKill looks take about 30 ms.
	roundsPerKill = 8
)

// Kill ends everything in the group and in the groups below it, and returns
// when nothing runs there any more or ctx ends ([ErrBusy]). A group that does
// not exist is empty.
func (g *Group) Kill(ctx context.Context) error {
	var r reader
	pause := minPause
	for round := 0; ; round++ {
		pids, err := r.pids(g.processDir())
		if isGone(err) {
			return nil
		}
		if err != nil {
			return g.fail("kill", err)
		}
		if len(pids) == 0 {
			return nil
		}
		// Killing needs time: freezing again at once would only hold up
		// processes that are on their way out.
		if round%roundsPerKill == 0 {
			if err := g.killOnce(ctx, &r); err != nil {
				return g.fail("kill", err)
			}
		}
		if g.waitEmpty(ctx, pause); ctx.Err() != nil {
			return fmt.Errorf("kill cgroup %s: %w: %d processes: %w", g.path, ErrBusy, len(pids), ctx.Err())
		}
		pause = min(2*pause, maxPause)
	}
}

// killOnce sends SIGKILL to all that is in the group now.
func (g *Group) killOnce(ctx context.Context, r *reader) error {
	if g.node.v2 {
		// Linux 5.14: forks cannot escape it.
		err := writeFile(g.dirs[0], "cgroup.kill", "1")
		if err == nil || !errors.Is(err, fs.ErrNotExist) || !g.Exists() {
			return ignoreMissing(err)
		}
	}
	// Frozen processes neither fork nor exit, so that the list stays true and
	// no number in it can come to mean another process.
	frozen, cancel := context.WithTimeout(ctx, freezeMax)
	defer cancel()
	freezeErr := g.setFrozen(frozen, true)
	if freezeErr != nil && !errors.Is(freezeErr, context.DeadlineExceeded) {
		return ignoreMissing(freezeErr)
	}
	pids, err := r.pids(g.processDir())
	if err == nil {
		for _, pid := range pids {
			if pid > 1 && pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	return ignoreMissing(errors.Join(err, g.setFrozen(ctx, false)))
}

// waitEmpty waits a little while, less when the kernel tells that the group
// has become empty.
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

// Freeze stops the group's processes where they are and returns when all stand.
func (g *Group) Freeze(ctx context.Context) error {
	if err := g.setFrozen(ctx, true); err != nil {
		// Half frozen is worse than not.
		return errors.Join(g.fail("freeze", err), g.setFrozen(context.WithoutCancel(ctx), false))
	}
	return nil
}

// Thaw lets them go on.
func (g *Group) Thaw(ctx context.Context) error {
	if err := g.setFrozen(ctx, false); err != nil {
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
		// Writing again picks up processes that were born meanwhile.
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

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// pids lists the processes of a directory and of those below it.
func (r *reader) pids(dir string) ([]int, error) {
	data, err := r.read(dir, "cgroup.procs")
	if errors.Is(err, unix.EOPNOTSUPP) {
		// A threaded group lists threads only, which do as well.
		data, err = r.read(dir, "cgroup.threads")
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range bytes.Lines(data) {
		pid, err := strconv.Atoi(string(bytes.TrimSpace(line)))
		if err != nil {
			return nil, fmt.Errorf("parse cgroup.procs: %w", err)
		}
		if pid > 0 { // 0 is a process of another PID namespace
			pids = append(pids, pid)
		}
	}
	below, err := subdirs(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range below {
		more, err := r.pids(dir + "/" + name)
		if err != nil && !isGone(err) {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// subdirs lists the groups directly below a directory. The number of links
// tells when there are none, which is nearly always.
func subdirs(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
