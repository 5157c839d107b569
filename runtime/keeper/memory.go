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

// watchMemory notes where the OOM kills of a container are counted, before it can exit.
//
// Where systemd manages cgroups it removes a container's as soon as its last
// process has exited, and the counter with it. This process is notified at the
// same time and is faster; the daemon may not be running at all.
func (e *entry) watchMemory() {
	if e.kind != wire.Container || e.proc == nil {
		return
	}
	events := memoryEvents(e.proc.pid)
	// If it was reaped, its PID may have been reused.
	if err := unix.PidfdSendSignal(e.proc.pidfd, 0, nil, 0); !errors.Is(err, unix.ESRCH) {
		e.events = events
	}
}

// memoryEvents is the file with the memory events of a process's cgroup, ""
// outside the unified hierarchy and for a process that is gone. The keeper has
// to stay small and does without package cgroup.
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

// oomKills reads the number of OOM kills from such a file, 0 if it is unknown.
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
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64) // 0 if it is not a number
			return n
		}
	}

	return 0
}
