package cgroup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// killing is one [Group.Kill] under way.
type killing struct {
	g *Group
	// forks is the original pids.max while forks are forbidden, else "".
	forks string
}

// round kills the present processes. Most groups need only the first round;
// later ones use stronger means against survivors.
func (k *killing) round(ctx context.Context, n int) error {
	if n == 0 {
		k.forbidForks()
		k.liftQuota()
	} else if err := k.liftQuotasBelow(ctx); err != nil {
		return err
	}

	exits := k.exits()
	defer closeAll(exits)

	if k.g.node.v2 {
		// Linux 5.14: forks cannot escape it. It does not work in threaded groups.
		err := writeFile(k.g.dirs[0], "cgroup.kill", "1")
		if err == nil && len(exits) == 0 || isGone(err) && !k.g.Exists() {
			return nil
		}
	}

	return k.killEach(ctx, n, exits)
}

// killEach kills one process after the other.
func (k *killing) killEach(ctx context.Context, n int, exits []*os.File) error {
	if k.forks == "" {
		// Frozen processes do not fork, so the list stays complete. What cannot
		// be frozen in time is killed in later rounds.
		frozen, cancel := context.WithTimeout(ctx, freezeMax)
		err := k.g.setFrozen(frozen, true)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return ignoreGone(err)
		}
	}

	total, errs := 0, []error(nil)
	for _, dir := range k.g.processDirs() {
		killed, err := killBelow(ctx, dir, exits)
		errs = append(errs, ignoreGone(err))
		if total += killed; total > 0 && n == 0 {
			break // most likely the other hierarchies have the same
		}
	}

	return errors.Join(append(errs, k.g.thawTree(ctx))...)
}

// forbidForks sets pids.max to forbid forks, so that killing terminates.
func (k *killing) forbidForks() {
	dir := k.g.dir("pids")
	if dir == "" {
		return
	}
	var r reader
	most, err := r.read(dir, "pids.max")
	if err != nil {
		return
	}
	was := string(bytes.TrimSpace(most))
	if was != "0" && writeFile(dir, "pids.max", "0") == nil {
		k.forks = was
	}
}

// restore allows forks again, for a group that is reused. The quota stays
// lifted: processes that were moved out may still need CPU time to exit.
func (k *killing) restore() {
	if k.forks != "" {
		_ = writeFile(k.g.dir("pids"), "pids.max", k.forks) // most groups are removed next
	}
}

// liftQuota gives exiting processes CPU time: a hundred of them would need
// minutes to exit with a hundredth of a CPU.
func (k *killing) liftQuota() {
	if dir := k.g.dir("cpu"); dir != "" {
		name, none := k.g.quota()
		_ = writeFile(dir, name, none) // an error means that there is no quota
	}
}

// liftQuotasBelow lifts quotas that the container has set in child groups.
func (k *killing) liftQuotasBelow(ctx context.Context) error {
	dir := k.g.dir("cpu")
	if dir == "" {
		return nil
	}
	name, none := k.g.quota()
	return ignoreGone(walk(ctx.Err, dir, visitor{enter: func(dir *os.File) error {
		return ignoreGone(writeAt(dir, name, none))
	}}))
}

// quota returns the file of the CPU quota, and the value that means none.
func (g *Group) quota() (name, none string) {
	if g.node.v2 {
		return "cpu.max", "max"
	}
	return "cpu.cfs_quota_us", "-1"
}

// exits opens the root groups, which have no limits, of hierarchies in which a
// parent group keeps killed processes from exiting.
func (k *killing) exits() []*os.File {
	var roots []string
	if k.g.throttledAbove() {
		roots = append(roots, k.g.node.mount("cpu"))
	}
	if !k.g.node.v2 && k.g.frozenAbove() {
		roots = append(roots, k.g.node.mount("freezer"))
	}

	var exits []*os.File
	for _, dir := range roots {
		fd, err := openRaw(filepath.Join(dir, "cgroup.procs"), unix.O_WRONLY)
		if err == nil {
			exits = append(exits, os.NewFile(uintptr(fd), dir))
		}
	}

	return exits
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// throttledAbove reports whether a parent has a CPU quota.
func (g *Group) throttledAbove() bool {
	var r reader
	name, none := g.quota()
	root := g.node.mount("cpu")
	for rel := g.at.parentRel; root != "" && rel != "/" && rel != "."; rel = path.Dir(rel) {
		value, err := r.read(filepath.Join(root, rel), name)
		if err == nil && !bytes.HasPrefix(value, []byte(none)) {
			return true
		}
	}
	return false
}

// frozenAbove reports whether a parent is frozen. In version 2 frozen processes
// can be killed.
func (g *Group) frozenAbove() bool {
	var r reader
	frozen, err := r.number(g.processDir(), "freezer.parent_freezing", 0)
	return err == nil && frozen != 0
}

// killBelow sends SIGKILL to the processes of a directory and of those below
// it, and counts them.
func killBelow(ctx context.Context, dir string, exits []*os.File) (killed int, err error) {
	err = walk(ctx.Err, dir, visitor{enter: func(dir *os.File) error {
		pids, err := pidsIn(dir)
		if err != nil {
			return err
		}

		for len(pids) > 0 {
			batch := pids[:min(len(pids), killBatch)]
			pids = pids[len(batch):]
			n, err := killIn(dir, batch, exits)
			if killed += n; err != nil {
				return err
			}
		}

		return nil
	}})
	return killed, err
}

// killBatch bounds the open pidfds.
const killBatch = 64

// killIn kills processes of one group. A listed PID may have been reused, so
// its pidfd is opened first, and the process killed only if the group still
// lists it then.
func killIn(dir *os.File, pids []int, exits []*os.File) (killed int, err error) {
	held := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range held {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()

	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		switch err {
		case nil:
			held[pid] = fd
		case unix.EINVAL, unix.ENOENT: // a thread, as threaded groups list them
			held[pid] = -1
		}
	}

	still, err := pidsIn(dir)
	if err != nil {
		return 0, err
	}

	for _, pid := range still {
		if fd, ok := held[pid]; !ok || pid == 1 || pid == os.Getpid() || kill(pid, fd) != nil {
			continue
		}
		killed++
		for _, exit := range exits {
			_ = writeRaw(int(exit.Fd()), "cgroup.procs", strconv.Itoa(pid)) // it may be gone
		}
	}

	return killed, nil
}

func kill(pid, pidfd int) error {
	if pidfd < 0 {
		return unix.Kill(pid, unix.SIGKILL)
	}
	return unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
}
