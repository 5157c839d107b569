// Package procstat reads what /proc says of one process.
package procstat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stat holds some fields of /proc/PID/stat, which proc_pid_stat(5) describes.
type Stat struct {
	// State is a letter: 'R' for running, 'Z' for a zombie.
	State byte
	// Parent is the PID of the parent, Group the ID of the process group.
	Parent, Group int
	// Flags are the kernel's PF_*.
	Flags uint64
	// StartTicks is when the process started, in clock ticks since boot. It
	// distinguishes a process from a later one with the same PID.
	StartTicks uint64
	// Exit is the exit status of a zombie. The kernel shows zero to a reader
	// that may not trace the process.
	Exit unix.WaitStatus
}

// Exiting reports whether the process, or thread, is in exit(2).
func (s Stat) Exiting() bool {
	const exiting = 0x4 // PF_EXITING
	return s.Flags&exiting != 0
}

// Read returns the fields of a process. The error is that of the file: it does
// not exist (fs.ErrNotExist) once the process has been reaped.
func Read(pid int) (Stat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, err
	}

	s, err := parse(data)
	if err != nil {
		return Stat{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	return s, nil
}

// Traced reports whether another process traces this one.
func Traced(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if tracer, ok := strings.CutPrefix(line, "TracerPid:"); ok {
			return strings.TrimSpace(tracer) != "0"
		}
	}
	return false
}

// Fields are counted from 1, as in the manual page.
const (
	fieldState      = 3
	fieldParent     = 4
	fieldGroup      = 5
	fieldFlags      = 9
	fieldStartTicks = 22
	fieldExit       = 52
)

func parse(data []byte) (s Stat, err error) {
	// The second field is the command in parentheses and may contain anything,
	// so the fields that follow are counted from its end.
	const cutOff = 3
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return s, errors.New("it has no command")
	}
	fields := bytes.Fields(data[end+1:])
	if len(fields) <= fieldExit-cutOff {
		return s, fmt.Errorf("only %d fields", len(fields)+cutOff-1)
	}

	s.State = fields[fieldState-cutOff][0]
	for _, f := range []struct {
		name  string
		field int
		set   func(uint64)
	}{
		{"parent", fieldParent, func(v uint64) { s.Parent = int(v) }},
		{"process group", fieldGroup, func(v uint64) { s.Group = int(v) }},
		{"flags", fieldFlags, func(v uint64) { s.Flags = v }},
		{"start time", fieldStartTicks, func(v uint64) { s.StartTicks = v }},
		{"exit status", fieldExit, func(v uint64) { s.Exit = unix.WaitStatus(v) }},
	} {
		v, err := strconv.ParseUint(string(fields[f.field-cutOff]), 10, 64)
		if err != nil {
			return s, fmt.Errorf("%s: %w", f.name, err)
		}
		f.set(v)
	}

	return s, nil
}

// PIDOf returns the PID of a pidfd's process in the PID namespace of /proc, -1 if the
// process has been reaped.
func PIDOf(pidfd *os.File) (int, error) { return PID(int(pidfd.Fd())) }

// PID is [PIDOf] for a descriptor's number.
func PID(pidfd int) (int, error) {
	path := fmt.Sprintf("/proc/self/fdinfo/%d", pidfd)
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s has no PID", path)
}
