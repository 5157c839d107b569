package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxPids bounds a list of processes, in bytes: Linux has four million pids.
const maxPids = 64 << 20

// maxListed bounds the groups that are searched for processes. On version 2
// there cannot be more; on version 1 a container may have created any number,
// and statistics must not wait for that.
const maxListed = 4096

// errEnough ends a walk that reached maxListed.
var errEnough = errors.New("enough")

// Pids lists the processes in the group and in up to some thousand groups below
// it. [Group.Kill] has no such bound.
func (g *Group) Pids() ([]int, error) {
	var pids []int
	for i, dir := range g.processDirs() {
		groups := 0
		err := walk(nil, dir, visitor{enter: func(dir *os.File) error {
			if groups++; groups > maxListed {
				return errEnough
			}
			more, err := pidsIn(dir)
			pids = append(pids, more...)
			return err
		}})
		if err != nil && !errors.Is(err, errEnough) && (i == 0 || !isGone(err)) {
			return nil, g.fail("list processes of", err)
		}

		if len(pids) > 0 {
			break // most likely the other hierarchies have the same
		}
	}

	return pids, nil
}

// processDir is the directory whose cgroup.procs lists the group's processes.
func (g *Group) processDir() string { return g.dir("freezer") }

// processDirs are the directories that may contain processes, processDir first:
// a container with write access to its groups may use only some.
func (g *Group) processDirs() []string {
	first := g.processDir()
	rest := slices.DeleteFunc(slices.Clone(g.dirs), func(dir string) bool { return dir == first })
	return append([]string{first}, rest...)
}

// pidsIn lists the processes of one group, without those of other PID namespaces.
func pidsIn(dir *os.File) ([]int, error) {
	pids, err := listedIn(dir)
	return slices.DeleteFunc(pids, func(pid int) bool { return pid <= 0 }), err
}

// listedIn lists the processes of one group. 0 is one of another PID namespace.
func listedIn(dir *os.File) ([]int, error) {
	data, err := readAt(dir, "cgroup.procs")
	if errors.Is(err, unix.EOPNOTSUPP) {
		// A threaded group lists only threads, which are sufficient.
		data, err = readAt(dir, "cgroup.threads")
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
		pids = append(pids, pid)
	}

	return pids, nil
}

// readAt reads a list of processes in an open directory.
func readAt(dir *os.File, name string) ([]byte, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return readRaw(fd, name, make([]byte, 4096), maxPids)
}
