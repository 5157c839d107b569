// Package inventory lists the resources that a program could leak on a machine:
// mounts, cgroups, network links, processes and descriptors.
package inventory

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Inventory is a snapshot of resources. Each one is described by a line that
// begins with its kind.
type Inventory struct {
	// shared resources belong to the machine, own ones to this process.
	shared, own map[string]bool
	// pids are this process and those below it.
	pids map[int]bool
}

// Scope selects which of the machine's resources count as this program's. Its
// own processes and descriptors always do.
type Scope struct {
	// All counts everything, except cgroups with unrelated processes.
	All bool
	// Namespaced counts every mount and link: this process has namespaces
	// for them that no other program uses.
	Namespaced bool
	// Marks are parts of names that only this program uses.
	Marks []string
	// NotOwn does not count this process's own: another check does, that of what began
	// before.
	NotOwn bool
}

// Take takes an inventory. It makes this process a child subreaper, so that
// orphaned descendants are counted.
func Take() Inventory {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // cannot fail on Linux 3.4 and later
	in := Inventory{shared: map[string]bool{}, own: map[string]bool{}, pids: map[int]bool{os.Getpid(): true}}
	stacked := map[string]int{}
	for _, m := range Mounts() {
		if stacked[m]++; stacked[m] > 1 {
			m = fmt.Sprintf("%s (%d over another)", m, stacked[m]-1)
		}
		in.shared["mount "+m] = true
	}

	for _, c := range Cgroups("") {
		if !kept(c) {
			in.shared["cgroup "+c] = true
		}
	}

	links, err := net.Interfaces()
	if err != nil {
		in.shared["links unreadable: "+err.Error()] = true
	}

	for _, l := range links {
		in.shared["link "+l.Name] = true
	}
	for _, p := range Descendants(os.Getpid()) {
		in.own["process "+p.String()] = true
		in.pids[p.PID] = true
	}

	for _, d := range descriptors() {
		in.own["descriptor "+d] = true
	}
	return in
}

// Settle takes inventories until there is nothing that was not there before, or
// the time is up, and lists what is left in the last one. Some resources take a
// moment to disappear: a keeper exits about a second after it holds nothing.
func (in Inventory) Settle(limit time.Duration, s Scope) []string {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		left := in.more(Take(), s)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// HasProcess reports whether p ran when the inventory was taken.
func (in Inventory) HasProcess(p Process) bool { return in.own["process "+p.String()] }

// more lists what after has and in lacks.
func (in Inventory) more(after Inventory, s Scope) []string {
	var more []string
	for what := range after.own {
		if !in.own[what] && !s.NotOwn {
			more = append(more, what)
		}
	}
	for what := range after.shared {
		if !in.shared[what] && s.covers(what, after.pids) {
			more = append(more, what)
		}
	}
	slices.Sort(more)
	return more
}

func (s Scope) covers(what string, pids map[int]bool) bool {
	if slices.ContainsFunc(s.Marks, func(mark string) bool { return strings.Contains(what, mark) }) {
		return true
	}
	if dir, ok := strings.CutPrefix(what, "cgroup "); ok {
		return s.All && !foreign(dir, pids)
	}
	return s.All || s.Namespaced
}

// kept reports whether a cgroup is the slice that crisp's scopes are in by
// default, and empty. systemd creates it with the first one, and keeps it.
func kept(dir string) bool {
	return filepath.Base(dir) == "crisp.slice" && len(subdirectories(dir)) == 0 && readString(filepath.Join(dir, "cgroup.procs")) == ""
}

// foreign reports whether a cgroup is in use, but not by any of the processes.
// A removed one is foreign too.
func foreign(dir string, pids map[int]bool) bool {
	if _, err := os.Stat(dir); err != nil {
		return true
	}
	if pid, ok := labOf(dir); ok && !pids[pid] && running(pid) {
		return true
	}
	used := false
	for _, d := range append(subdirectories(dir), dir) {
		for _, field := range strings.Fields(readString(filepath.Join(d, "cgroup.procs"))) {
			pid, err := strconv.Atoi(field)
			if err != nil || pids[pid] {
				return false
			}
			used = true
		}
	}

	return used
}

// OfRunningLab reports whether what is a cgroup of a lab whose process runs.
func OfRunningLab(what string) bool {
	pid, ok := labOf(what)
	return ok && running(pid)
}

// labOf returns the process whose lab or suite a cgroup's name tells of. A lab's
// cgroups may be empty, and are its own for all that.
func labOf(dir string) (pid int, ok bool) {
	for name := range strings.SplitSeq(dir, "/") {
		for _, kind := range []string{"crisp_lab_", "crisp_suite_"} {
			rest, found := strings.CutPrefix(name, kind)
			digits, _, _ := strings.Cut(rest, "_")
			if pid, err := strconv.Atoi(digits); found && err == nil {
				return pid, true
			}
		}
	}
	return 0, false
}

func running(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

// Mounts lists the mount points of this process's namespace, once per mount.
func Mounts() []string {
	var points []string
	for line := range strings.Lines(readString("/proc/self/mountinfo")) {
		if point, _ := mountPointAndType(line); point != "" {
			points = append(points, point)
		}
	}
	return points
}

// MountsBelow lists the mount points in dir, the last mounted first.
func MountsBelow(dir string) []string {
	points := slices.DeleteFunc(Mounts(), func(p string) bool { return !strings.HasPrefix(p, dir+"/") })
	slices.Reverse(points)
	return points
}

// Hierarchies lists the mount points of cgroups.
func Hierarchies() []string {
	var all []string
	for line := range strings.Lines(readString("/proc/self/mountinfo")) {
		if point, fsType := mountPointAndType(line); fsType == "cgroup" || fsType == "cgroup2" {
			all = append(all, point)
		}
	}
	return all
}

// Cgroups lists the cgroups of every hierarchy whose path contains part,
// parents before their children.
func Cgroups(part string) []string {
	var all []string
	for _, root := range Hierarchies() {
		all = append(all, subdirectories(root)...)
	}
	return slices.DeleteFunc(all, func(dir string) bool { return !strings.Contains(dir, part) })
}

func mountPointAndType(line string) (point, fsType string) {
	f := strings.Fields(line)
	sep := slices.Index(f, "-")
	if sep < 5 || sep+1 >= len(f) {
		return "", ""
	}
	return f[4], f[sep+1]
}

// subdirectories lists the directories below dir. It skips those that are
// removed meanwhile.
func subdirectories(dir string) []string {
	var all []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			path := filepath.Join(dir, e.Name())
			all = append(append(all, path), subdirectories(path)...)
		}
	}
	return all
}

// Process is a running process.
type Process struct {
	PID  int
	Name string
}

func (p Process) String() string { return fmt.Sprintf("%d %s", p.PID, p.Name) }

// Descendants lists the processes below pid. Zombies that were orphaned to
// this process are reaped on the way, as init would.
func Descendants(pid int) []Process {
	var all []Process
	for _, name := range Names("/proc") {
		child, err := strconv.Atoi(name)
		if err != nil {
			continue
		}

		comm, state, parent := processStat(child)
		if parent != pid {
			continue
		}
		if state == "Z" && pid == os.Getpid() && reapOrphan(child) {
			continue
		}

		all = append(all, Process{child, program(child, comm)})
		all = append(all, Descendants(child)...)
	}

	return all
}

// program is the name of a process's executable. Its comm may be meaningless:
// that of a program started from a descriptor is the number.
func program(pid int, comm string) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return comm
	}
	exe = strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return strings.TrimPrefix(exe, "memfd:")
}

// reapOrphan waits for a zombie. os/exec may be about to wait for it, so it
// gets a moment to do so first.
func reapOrphan(pid int) bool {
	for range 10 {
		time.Sleep(5 * time.Millisecond)
		if _, state, _ := processStat(pid); state != "Z" {
			return true
		}
	}
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil || err == unix.ECHILD
}

// Parent is the ID of a process's parent, 0 if there is none.
func Parent(pid int) int {
	_, _, parent := processStat(pid)
	return parent
}

func processStat(pid int) (comm, state string, parent int) {
	stat := readString(fmt.Sprintf("/proc/%d/stat", pid))
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", "", 0
	}
	f := strings.Fields(stat[end+1:])
	if len(f) < 2 {
		return "", "", 0
	}
	parent, _ = strconv.Atoi(f[1])
	return stat[open+1 : end], f[0], parent
}

// descriptors lists this process's open descriptors as "N TARGET", without
// those of Go's poller and of this listing.
func descriptors() []string {
	const dir = "/proc/self/fd"
	var all []string
	for _, n := range Names(dir) {
		target, err := os.Readlink(filepath.Join(dir, n))
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		all = append(all, n+" "+target)
	}
	return all
}

// Names lists a directory, which may be missing.
func Names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func readString(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(data)
}
