package orphan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/procstat"
)

// Ended reports whether a process runs no more and has released what it had, though its
// parent may never reap it: each of its threads is a zombie, or waits in exit(2) as
// [Defunct] describes. A process whose first thread is a zombie may have others that run.
// One that was reaped has ended too.
func Ended(pid int) bool {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return isReaped(err)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil || !threadEnded(pid, tid) {
			return false
		}
	}
	return true
}

func threadEnded(pid, tid int) bool {
	s, err := procstat.Read(tid)
	if err != nil {
		return isReaped(err)
	}
	if s.State == 'Z' || s.State == 'X' {
		return true
	}
	_, waits := waitsInExit(tid)
	return waits && isInit(pid)
}

// isInit reports whether a process is the first of a PID namespace below that of /proc:
// only such a one waits for others before its exit is complete.
func isInit(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(line, "NStgid:"); ok {
			f := strings.Fields(ids)
			return len(f) > 1 && f[len(f)-1] == "1"
		}
	}
	return false
}

func isReaped(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }
