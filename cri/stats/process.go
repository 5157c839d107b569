package stats

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What one container may cost a round of statistics. A process holds as many
// descriptors as its limit allows, and a container has thousands of processes:
// beyond these bounds the figures are estimates.
const (
	maxProcesses = 2048 // are asked for the number of their descriptors
	maxLinks     = 2048 // descriptors are looked at
	nameBatch    = 256
)

// counts tells what processes hold open.
type counts struct{ files, sockets uint64 }

// countOpen tells what the processes of a container hold open.
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

// scale is what n would be among all, if it was found among some.
func scale(n, all, some uint64) uint64 {
	if some == 0 || some >= all {
		return n
	}
	return uint64(float64(n) * float64(all) / float64(some))
}

// descriptors adds up the descriptors of several processes.
type descriptors struct {
	files           uint64
	sockets, looked uint64 // of the descriptors looked at
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

// look counts sockets, as long as there is no more than that to look at.
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

// maxOpenFiles is a process's soft limit on descriptors. The file is open to
// everybody, where prlimit(2) wants a capability.
func maxOpenFiles(pid int) (uint64, bool) {
	if pid <= 0 {
		return 0, false
	}
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
