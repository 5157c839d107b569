//go:build crash

package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	memoryRoot = "/sys/fs/cgroup/memory"
	pageSize   = 4096
	// spareMemory bounds the logarithm of the number of pages that a memory limit
	// leaves, spareSpace the number of pages of address space.
	spareMemory = 7
	spareSpace  = 4
)

// memory is a cgroup that limits memory. On version 1 the OOM killer can be
// disabled, so that system calls fail instead.
func (n *node) memory() string { return filepath.Join(memoryRoot, n.Name+"-limit") }

// limitMemory puts a process into a cgroup with little memory left. With killer,
// the kernel kills it if it needs more. Without, system calls that need memory
// fail, and a page fault blocks.
func (n *node) limitMemory(pid int, random *rand.Rand, killer bool) error {
	if err := os.Mkdir(n.memory(), 0o755); err != nil {
		return err
	}
	set := func(file string, value int) error {
		return os.WriteFile(filepath.Join(n.memory(), file), fmt.Append(nil, value), 0)
	}

	if !killer {
		if err := set("memory.oom_control", 1); err != nil {
			return err
		}
	}

	if err := set("cgroup.procs", pid); err != nil {
		return err
	}
	var usage int
	if _, err := fmt.Sscan(slurp(filepath.Join(n.memory(), "memory.usage_in_bytes")), &usage); err != nil {
		return err
	}

	return set("memory.limit_in_bytes", usage+random.IntN(1<<random.IntN(spareMemory))*pageSize)
}

func (n *node) limitKeeperMemory(random *rand.Rand, killer bool) error {
	pid, err := n.Keeper()
	if err != nil {
		return err
	}
	return n.limitMemory(pid, random, killer)
}

// unlimitMemory moves the processes in the cgroup to that of this process.
func (n *node) unlimitMemory() error {
	if err := os.WriteFile(filepath.Join(n.memory(), "memory.limit_in_bytes"), []byte("-1"), 0); err != nil {
		return err
	}
	own := memoryRoot
	for line := range strings.Lines(slurp("/proc/self/cgroup")) {
		if _, path, ok := strings.Cut(strings.TrimSpace(line), ":memory:"); ok {
			own = filepath.Join(memoryRoot, path)
		}
	}

	for range 1000 { // processes may fork meanwhile, and end slowly
		for _, pid := range strings.Fields(slurp(filepath.Join(n.memory(), "cgroup.procs"))) {
			_ = os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(pid), 0) // it may have ended
		}
		if err := unix.Rmdir(n.memory()); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(time.Millisecond)
	}

	return fmt.Errorf("processes remain in %s", n.memory())
}

// limitSpace leaves little address space to a process.
func limitSpace(pid int, random *rand.Rand) error {
	var kb uint64
	for line := range strings.Lines(slurp(fmt.Sprintf("/proc/%d/status", pid))) {
		if rest, ok := strings.CutPrefix(line, "VmSize:"); ok {
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				return err
			}
		}
	}
	return setSpace(pid, kb<<10+uint64(random.IntN(spareSpace))*pageSize)
}

func unlimitSpace(pid int) error { return setSpace(pid, unix.RLIM_INFINITY) }

func setSpace(pid int, limit uint64) error {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_AS, nil, &old); err != nil {
		return err
	}
	old.Cur = min(old.Max, limit)
	return unix.Prlimit(pid, unix.RLIMIT_AS, &old, nil)
}

func (n *node) limitKeeperSpace(random *rand.Rand) error {
	pid, err := n.Keeper()
	if err != nil {
		return err
	}
	return limitSpace(pid, random)
}

func (n *node) unlimitKeeperSpace() error {
	pid := n.keeperOrNone()
	if pid == 0 {
		return nil // it will be replaced soon, without a limit
	}
	return unlimitSpace(pid)
}
