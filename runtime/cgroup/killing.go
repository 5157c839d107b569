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
	// forks is how many processes the group may have, "" while that is so.
	forks string
}

// round kills what is there now. The first one is all that most groups need;
// the later ones go for what has found a way to last.
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
		// Linux 5.14: forks cannot escape it. A threaded group has no such file
		// that works.
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
		// Frozen processes do not fork, so that the list stays true. What
		// cannot be frozen in time is killed in the rounds that follow.
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
			break // the others most likely have the same
		}
	}

	return errors.Join(append(errs, k.g.thawTree(ctx))...)
}

// forbidForks lets nothing more be born in the group, so that killing what is
// there comes to an end.
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

// restore allows forks again, for a group that is used again. The quota stays
// lifted: what has left the group may still need the processor to end.
func (k *killing) restore() {
	if k.forks != "" {
		_ = writeFile(k.g.dir("pids"), "pids.max", k.forks) // most often it is gone soon
	}
}

// liftQuota lets the dying have the processor: a hundred of them would need
// minutes to end with a hundredth of one.
func (k *killing) liftQuota() {
	if dir := k.g.dir("cpu"); dir != "" {
		name, none := k.g.quota()
		_ = writeFile(dir, name, none) // where there is none it need not be lifted
	}
}

// liftQuotasBelow lifts those that the container has set in groups of its own.
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

// quota is the file of a quota of processor time, and what means none.
func (g *Group) quota() (name, none string) {
	if g.node.v2 {
		return "cpu.max", "max"
	}
	return "cpu.cfs_quota_us", "-1"
}

// exits opens the ways out of parents that hold up the dying: to the root
// group of a hierarchy, in which nothing is limited.
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

// throttledAbove tells whether a parent has a quota of processor time.
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

// frozenAbove tells whether a parent is frozen. With version 2 the killed die
// all the same.
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

// killBatch bounds the descriptors that killing holds.
const killBatch = 64

// killIn kills processes of one group. A number that was listed may have come
// to mean another process, so each is held first, and killed only if the group
// still lists it then.
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
