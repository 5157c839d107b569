package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on all architectures that
// Go supports.
const tick = 10 * time.Millisecond

// process is a process's line in /proc/PID/stat.
type process struct {
	pid, parent int
	cpu         time.Duration // its own and that of children that it has reaped
}

// parseStat parses /proc/PID/stat. The program's name may contain anything.
func parseStat(line string) (p process, err error) {
	end := strings.LastIndexByte(line, ')')
	pid, _, _ := strings.Cut(line, " ")
	f := strings.Fields(line[end+1:])
	if p.pid, err = strconv.Atoi(pid); err != nil || end < 0 || len(f) < 15 {
		return p, fmt.Errorf("read the state of a process: %.60q", line)
	}
	if p.parent, err = strconv.Atoi(f[1]); err != nil {
		return p, err
	}

	for _, field := range f[11:15] { // utime, stime, cutime, cstime
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return p, err
		}
		p.cpu += time.Duration(ticks) * tick
	}

	return p, nil
}

// descendants lists the processes below this one, looking at each only once.
func descendants() ([]process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}

	children := map[int][]process{}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has exited meanwhile
		}

		p, err := parseStat(string(line))
		if err != nil {
			return nil, err
		}
		children[p.parent] = append(children[p.parent], p)
	}

	var all []process
	for next := []int{os.Getpid()}; len(next) > 0; next = next[1:] {
		for _, p := range children[next[0]] {
			all = append(all, p)
			next = append(next, p.pid)
		}
	}

	return all, nil
}

// program returns the name of a process's executable, "" if it has exited.
func (p process) program() string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimSuffix(filepath.Base(exe), " (deleted)"), "memfd:")
}

// names reports whether a process's arguments name a directory.
func (p process) names(dir string) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	return err == nil && bytes.Contains(args, []byte(dir))
}

// own lists the runtime's processes by program.
func (t *target) own() (map[string][]process, error) {
	all, err := descendants()
	own := map[string][]process{}
	for _, p := range all {
		if name := p.program(); slices.Contains(t.programs, name) && p.names(t.dir) {
			own[name] = append(own[name], p)
		}
	}
	return own, err
}

// memory returns the proportional set sizes of the runtime's processes by program,
// in KiB.
func (t *target) memory() (map[string]int, error) {
	own, err := t.own()
	pss := map[string]int{}
	for name, list := range own {
		for _, p := range list {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
			if err != nil {
				return nil, fmt.Errorf("memory of %s: %w", name, err)
			}
			pss[name] += kib(string(text), "Pss")
		}
	}
	return pss, err
}

// cpu returns the CPU time of the runtime's processes and of the children that
// they have reaped.
func (t *target) cpu() (sum time.Duration, err error) {
	own, err := t.own()
	for _, list := range own {
		for _, p := range list {
			sum += p.cpu
		}
	}
	return sum, err
}

// kib adds up the named lines of a file like /proc/meminfo.
func kib(text string, names ...string) (sum int) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		if f := strings.Fields(value); len(f) > 0 && slices.Contains(names, name) {
			n, _ := strconv.Atoi(f[0]) // they are all numbers
			sum += n
		}
	}
	return sum
}

// parseBusy returns the time that all CPUs were busy, from /proc/stat.
func parseBusy(text string) (time.Duration, error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("read CPU times: %.60q", line)
	}

	var sum time.Duration
	for i, field := range f[1:9] {
		if i == 3 || i == 4 { // idle, and waiting for a disk
			continue
		}
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * tick
	}

	return sum, nil
}

// busy returns the time that all CPUs have been busy so far.
func busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(text))
}

// kernelMemory returns the kernel's own memory on this machine, without what can be
// reclaimed, in KiB.
func kernelMemory() (int, error) {
	text, err := os.ReadFile("/proc/meminfo")
	return kib(string(text), "SUnreclaim", "KernelStack", "PageTables", "Percpu"), err
}

// chargedMemory returns the kernel memory that is charged to a cgroup and those
// below it, in KiB. ok is false if the kernel does not report it.
func chargedMemory(cgroup string) (size int, ok bool) {
	return chargedIn("/sys/fs/cgroup", cgroup)
}

func chargedIn(root, cgroup string) (size int, ok bool) {
	text, err := os.ReadFile(filepath.Join(root, cgroup, "memory.stat"))
	if err == nil {
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "kernel" {
				bytes, err := strconv.Atoi(f[1])
				return bytes >> 10, err == nil
			}
		}
		return 0, false
	}

	text, err = os.ReadFile(filepath.Join(root, "memory", cgroup, "memory.kmem.usage_in_bytes"))
	if err != nil {
		return 0, false
	}
	bytes, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return bytes >> 10, err == nil
}
