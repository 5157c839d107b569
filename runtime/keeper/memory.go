package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
)

const cgroupRoot = "/sys/fs/cgroup"

// watchMemory notes where the OOM kills of a container are counted, before its
// end is awaited.
//
// Where systemd manages cgroups it removes a container's as soon as its last
// process has ended, and the count with it. This process learns of the end
// when systemd does and is faster; the daemon may not be there at all.
func (e *entry) watchMemory() {
	if e.kind != wire.Container || e.proc == nil {
		return
	}
	events := memoryEvents(e.proc.pid)
	// If it is reaped, its number may be that of another process by now.
	if err := unix.PidfdSendSignal(e.proc.pidfd, 0, nil, 0); !errors.Is(err, unix.ESRCH) {
		e.events = events
	}
}

// memoryEvents is the file in which the kernel counts what befell the cgroup
// of a process, "" where none is in the unified hierarchy and for one that is
// gone. The keeper is to stay small and does without package cgroup.
func memoryEvents(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(data) {
		if path, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("0::")); ok && len(path) > 1 {
			return filepath.Join(cgroupRoot, string(path), "memory.events")
		}
	}
	return ""
}

// oomKills reads from such a file how many processes were killed for want of
// memory, 0 if that cannot be known.
func oomKills(file string) int64 {
	if file == "" {
		return 0
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}

	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64) // 0 if it is none
			return n
		}
	}

	return 0
}
