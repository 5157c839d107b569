package cgroup

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/orphan"
	"crisp/runtime/procstat"
)

// defunct reports whether there are processes in the group or below it, and all of
// them have ended, see [orphan.Ended].
//
// The first process of a PID namespace has released everything, but is not a zombie
// as long as a parent outside has not reaped its child in there, which may be for
// ever. Until Linux 6.18 it had left its group by then. Since 6.19 it keeps the group
// populated, and since 7.0 no list of the group's processes has it.
func (g *Group) defunct(ctx context.Context) bool {
	found := false
	look := func(pid int) error {
		found = true
		if pid <= 0 || !orphan.Ended(pid) {
			return errFound
		}
		return nil
	}

	for _, dir := range g.dirs {
		err := walk(ctx.Err, dir, visitor{enter: func(dir *os.File) error {
			pids, err := listedIn(dir)
			for _, pid := range pids {
				if err := look(pid); err != nil {
					return err
				}
			}
			return err
		}})
		if ignoreGone(err) != nil {
			return false
		}
	}

	// In version 1 hierarchies /proc shows what exits in the root group.
	if g.unifiedDir() != "" && eachMember(ctx, g.at.rel, look) != nil {
		return false
	}
	return found
}

// eachMember calls do with every process whose group in the unified hierarchy is rel
// or one below it, in whatever state it is. An error ends it.
func eachMember(ctx context.Context, rel string, do func(pid int) error) error {
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return err
	}

	var r reader
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}

		inside, err := isMember(&r, pid, rel)
		if err == nil && inside {
			err = do(pid)
		}
		if err != nil {
			return err
		}
	}

	return nil
}

func isMember(r *reader, pid int, rel string) (bool, error) {
	data, err := r.read("/proc/"+strconv.Itoa(pid), "cgroup")
	switch {
	case isGone(err), errors.Is(err, unix.ESRCH):
		return false, nil
	case errors.Is(err, unix.ENAMETOOLONG):
		// A container has nested groups that deep. Only a process that exits may
		// be missing in the lists of its group.
		s, err := procstat.Read(pid)
		return err == nil && s.Exiting(), nil
	case err != nil:
		return false, err
	}

	list, err := parseMemberships(data)
	if err != nil {
		return false, err
	}
	for _, m := range list {
		if len(m.controllers) == 0 {
			return m.path == rel || strings.HasPrefix(m.path, rel+"/"), nil
		}
	}

	return false, errors.New("a process is in no group of the unified hierarchy")
}
