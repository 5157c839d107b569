package stats

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds on the cost of one container per round. A process can have as many
// descriptors as its limit allows, and a container thousands of processes:
// beyond these bounds the counts are estimates.
const (
	maxProcesses = 2048 // whose descriptors are counted
	maxLinks     = 2048 // descriptors that are inspected
	nameBatch    = 256
)

// counts are the open descriptors of processes.
type counts struct{ files, sockets uint64 }

// countOpen counts the open descriptors of a container's processes.
func countOpen(pids []int) counts {
	var c descriptors
	asked := pids[:min(len(pids), maxProcesses)]
	for _, pid := range asked {
		c.add("/proc/" + strconv.Itoa(pid) + "/fd")
	}
	return counts{
		files:   scale(c.files, uint64(len(pids)), uint64(len(asked))),
		sockets: scale(scale(c.sockets, c.files, c.looked), uint64(len(pids)), uint64(len(asked))),
	}
}

// scale extrapolates n, counted in a sample, to the total.
func scale(n, all, some uint64) uint64 {
	if some == 0 || some >= all {
		return n
	}
	return uint64(float64(n) * float64(all) / float64(some))
}

// descriptors adds up the descriptors of several processes.
type descriptors struct {
	files           uint64
	sockets, looked uint64 // of the inspected descriptors
}

// add counts the entries of a directory of descriptors. Since Linux 6.2 its size
// is their number.
func (c *descriptors) add(path string) {
	dir, err := os.Open(path)
	if err != nil {
		return
	}
	defer dir.Close()
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) != nil {
		return
	}
	looked := c.look(dir)
	c.looked += looked
	c.files += max(uint64(max(st.Size, 0)), looked)
}

// look counts sockets among the first maxLinks descriptors.
func (c *descriptors) look(dir *os.File) (looked uint64) {
	var target [8]byte
	for c.looked+looked < maxLinks {
		names, err := dir.Readdirnames(nameBatch)
		if len(names) == 0 || err != nil {
			return looked
		}

		for _, name := range names {
			looked++
			if n, err := unix.Readlinkat(int(dir.Fd()), name, target[:]); err == nil && strings.HasPrefix(string(target[:n]), "socket:") {
				c.sockets++
			}
		}
	}

	return looked
}

// maxOpenFiles returns a process's soft limit on descriptors. prlimit(2)
// requires a capability for a process of another user, while the file is
// world-readable.
func maxOpenFiles(pid int) (uint64, bool) {
	if pid <= 0 {
		return 0, false
	}
	var limit unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		return limit.Cur, limit.Cur != unix.RLIM_INFINITY
	}
	return listedOpenFiles(pid)
}

func listedOpenFiles(pid int) (uint64, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return 0, false
	}

	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			fields := strings.Fields(rest)
			if len(fields) == 0 {
				return 0, false
			}
			v, err := strconv.ParseUint(fields[0], 10, 64)
			return v, err == nil
		}
	}

	return 0, false
}
