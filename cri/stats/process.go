package stats

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// counts tells what processes hold open.
type counts struct{ files, sockets uint64 }

func (c *counts) add(pid string) {
	dir, err := os.Open("/proc/" + pid + "/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	var target [8]byte
	for {
		names, err := dir.Readdirnames(batch)
		if len(names) == 0 || err != nil {
			return
		}
		for _, name := range names {
			c.files++
			if n, err := unix.Readlinkat(int(dir.Fd()), name, target[:]); err == nil && strings.HasPrefix(string(target[:n]), "socket:") {
				c.sockets++
			}
		}
	}
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
