package criu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLooked is how many descriptors are looked at, of all processes together.
const maxLooked = 1 << 16

// Saveable tells early, and in words, what CRIU cannot save: at some of it, it fails
// without a reason. The error is [ErrRefused]. What has changed by the time of the dump,
// and what is not known here, CRIU refuses itself. It returns the sockets of the processes,
// as their inodes, and a process that has each; nil if these are too many.
func Saveable(pids []int) (sockets map[uint32]int, err error) {
	looked, kinds := 0, unsaveable()
	sockets = map[uint32]int{}
	for _, pid := range pids[:min(len(pids), maxAsked)] {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		if looked == maxLooked {
			return nil, nil // CRIU looks itself
		}
		names, err := namesIn(dir, maxLooked-looked)
		if err != nil {
			return nil, fmt.Errorf("list the descriptors of process %d: %w", pid, err)
		}
		looked += len(names)

		for _, name := range names {
			link, err := os.Readlink(dir + "/" + name)
			if err != nil {
				continue // it was closed meanwhile
			}
			var inode uint32
			if _, err := fmt.Sscanf(link, "socket:[%d]", &inode); err == nil {
				sockets[inode] = pid
				continue
			}
			kind, ok := strings.CutPrefix(link, "anon_inode:")
			if what := kinds[strings.Trim(kind, "[]")]; ok && what != "" {
				return nil, fmt.Errorf("%w: process %d has %s as descriptor %s, which it cannot save", ErrRefused, pid, what, name)
			}
		}
	}
	if len(pids) > maxAsked {
		return nil, nil
	}
	return sockets, nil
}

// unsaveable are kinds of files that have no name, as the kernel calls them, and what
// they are.
func unsaveable() map[string]string {
	return map[string]string{"io_uring": "an io_uring", "userfaultfd": "a userfaultfd", "perf_event": "an event of perf", "bpf-prog": "a BPF program"}
}

// namesIn lists a directory of procfs, up to a number of names. That of a process that
// has ended has none.
func namesIn(dir string, most int) ([]string, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(most)
	if errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return names, err
}
