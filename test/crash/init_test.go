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
	// reapLooks is how many looks a zombie may wait for who started it, unless
	// it is of another PID namespace: os/exec makes none of these.
	reapLooks, foreignLooks = 100, 2
)

// beInit makes this process what init is on a real node: orphans that become
// its children are reaped soon, upon which the kernel tells how they ended to
// whoever has their pidfd.
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

// reapZombies reaps children that have been zombies at several looks; those of
// os/exec are gone before. It returns how often each was seen.
func reapZombies(seen map[int]int) map[int]int {
	now := map[int]int{}
	lists, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is good
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
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it may be gone after all
			}
		}
	}

	return now
}
