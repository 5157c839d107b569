//go:build crash

package crash

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/orphan"
)

const (
	lookPeriod = 20 * time.Millisecond
	// reapLooks is after how many looks a zombie is reaped: os/exec, if it started
	// the process, has reaped it before. It does not start processes in other PID
	// namespaces, so foreignLooks can be short.
	reapLooks, foreignLooks = 100, 2
)

// beInit makes this process act as init does on a real node: it soon reaps orphans
// that become its children, after which their exit status can be read from their
// pidfds.
func beInit(t *testing.T) {
	t.Helper()
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		seen := map[int]int{}
		for {
			select {
			case <-quit:
				return
			case <-time.After(lookPeriod):
				seen = reapZombies(seen)
			}
		}
	}()
	t.Cleanup(func() { close(quit); <-done })
}

// reapZombies reaps children that were zombies at several looks. It returns how
// often each was seen.
func reapZombies(seen map[int]int) map[int]int {
	now := map[int]int{}
	lists, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is valid
	for _, list := range lists {
		data, _ := os.ReadFile(list) // the thread may have ended
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil || !zombie(pid) {
				continue
			}

			looks := reapLooks
			if orphan.Foreign(pid) {
				looks = foreignLooks
			}
			if now[pid] = seen[pid] + 1; now[pid] >= looks {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it may have been reaped
			}
		}
	}

	return now
}
