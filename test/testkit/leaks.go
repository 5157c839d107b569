package testkit

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is how long a test's leavings may take to go by themselves: a
// keeper ends about a second after it holds nothing.
const settleTime = 5 * time.Second

// Leaks notes what there is of mounts, cgroups, network links, child processes and
// open descriptors, and fails the test at its end if there is more by then.
// Call it first: clean-ups registered later run before its check. It is not
// for parallel tests, whose descriptors cannot be told apart.
//
// Unless [Strict], things outside this process count only when they carry
// the test's [Name] (as everything in its temporary folders does) or one of
// the further marks given: other tests may run beside this one.
func Leaks(t testing.TB, marks ...string) {
	t.Helper()
	t.Setenv("CRISP_TEST_LEAKS", t.Name()) // Setenv refuses parallel tests
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatalf("become a child subreaper: %v", err)
	}
	marks = append(marks, Name(t))
	before := takeInventory()
	t.Cleanup(func() {
		var left []string
		for end := time.Now().Add(settleTime); ; time.Sleep(20 * time.Millisecond) {
			http.DefaultClient.CloseIdleConnections()
			left = before.missing(takeInventory(), marks)
			if len(left) == 0 || time.Now().After(end) {
				break
			}
		}
		for _, what := range left {
			t.Errorf("left behind: %s", what)
		}
	})
}

// Name returns a name for what the test makes outside its temporary folders:
// cgroups, pins and the like. No other test or process uses it.
func Name(t testing.TB) string {
	t.Helper()
	return filepath.Base(filepath.Dir(t.TempDir()))
}

// inventory is what a test could leave behind, by kind and description.
type inventory struct {
	// shared things belong to the machine, own ones to this process.
	shared, own map[string]bool
}

func takeInventory() inventory {
	in := inventory{shared: map[string]bool{}, own: map[string]bool{}}
	for _, m := range mounts() {
		in.shared["mount "+m] = true
	}
	for _, c := range cgroups() {
		in.shared["cgroup "+c] = true
	}
	for _, l := range dirNames("/sys/class/net") {
		in.shared["link "+l] = true
	}
	for _, p := range descendants(os.Getpid()) {
		in.own["process "+p] = true
	}
	for _, d := range descriptors() {
		in.own["descriptor "+d] = true
	}
	return in
}

// missing lists what after has and in lacks.
func (in inventory) missing(after inventory, marks []string) []string {
	var more []string
	for what := range after.own {
		if !in.own[what] {
			more = append(more, what)
		}
	}
	for what := range after.shared {
		if !in.shared[what] && (Strict() || containsAny(what, marks)) {
			more = append(more, what)
		}
	}
	slices.Sort(more)
	return more
}

// mounts lists the mount points of this process's namespace.
func mounts() []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"table unreadable: " + err.Error()}
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, f[4]+" ("+f[0]+")")
		}
	}
	return points
}

// cgroups lists the cgroups of every hierarchy.
func cgroups() []string {
	var all []string
	for line := range strings.Lines(readString("/proc/self/mountinfo")) {
		point, fsType := mountPointAndType(line)
		if fsType != "cgroup" && fsType != "cgroup2" {
			continue
		}
		all = append(all, subdirectories(point)...)
	}
	return all
}

func mountPointAndType(line string) (point, fsType string) {
	f := strings.Fields(line)
	sep := slices.Index(f, "-")
	if sep < 5 || sep+1 >= len(f) {
		return "", ""
	}
	return f[4], f[sep+1]
}

// subdirectories lists the folders below dir. It passes over those that
// vanish while it looks.
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

// descendants lists the processes below pid, as "PID NAME". Zombies that were
// orphaned to this process are reaped on the way, as init would.
func descendants(pid int) []string {
	var all []string
	for _, name := range dirNames("/proc") {
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
		all = append(all, fmt.Sprintf("%d %s", child, comm))
		all = append(all, descendants(child)...)
	}
	return all
}

// reapOrphan waits for a zombie. One that os/exec is about to wait for is
// gone a moment later anyway, so it is given that moment first.
func reapOrphan(pid int) bool {
	time.Sleep(5 * time.Millisecond)
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil || err == unix.ECHILD
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
	for _, n := range dirNames(dir) {
		target, err := os.Readlink(filepath.Join(dir, n))
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		all = append(all, n+" "+target)
	}
	return all
}

func dirNames(dir string) []string {
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

func containsAny(s string, parts []string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(s, p) })
}

func listed(list, item string) bool {
	return slices.Contains(strings.Split(list, ","), item)
}
