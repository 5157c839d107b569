package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
)

// The drivers, which create the directories.
const (
	// Cgroupfs creates groups by mkdir.
	Cgroupfs = "cgroupfs"
	// Systemd asks systemd for a transient scope per group.
	Systemd = "systemd"
)

const (
	mountPoint = "/sys/fs/cgroup"
	// scopePrefix is the prefix of the ID in the names of systemd scopes.
	// Agents on the node (Falco, Cilium, profilers) recognize a container's
	// scope by it: they know this one and CRI-O's.
	scopePrefix = "cri-containerd"
)

// Node is the cgroup setup of this machine. It is safe for concurrent use. The
// zero Node, for tests, has no hierarchies: it checks and names groups, but
// creates and limits none. [New] never returns such a Node.
type Node struct {
	driver string
	v2     bool
	// root is where the unified hierarchy is mounted, "" if it is not.
	root string
	// mu guards hierarchies and seen.
	mu sync.Mutex
	// hierarchies are all that are in use, in the order in which groups are
	// created: first the unified one on version 2, then those with limits. The
	// list only grows, see [Node.refresh].
	hierarchies []hierarchy
	// seen is the content of /proc/self/cgroup when last read; nil if it is not read.
	seen []byte
	// where is the index in hierarchies of each controller that was in use
	// from the start.
	where map[string]int
	// parent is the default parent group.
	parent string
	// swap: swap can be limited.
	swap bool
	// pageSizes are the huge page sizes whose use can be limited.
	pageSizes []string
	degraded  []string
	filters   filters
	oom       oomClaims
}

// CheckDriver reports whether this machine can use a driver, as [New] takes it:
// the systemd driver needs systemd, or the error is ErrUnsupported.
func CheckDriver(driver string) error {
	switch driver {
	case "", Cgroupfs:
		return nil
	case Systemd:
		if !systemd.IsRunningSystemd() {
			return fmt.Errorf("use the systemd cgroup driver: systemd is not running: %w", ErrUnsupported)
		}
		return nil
	}
	return fmt.Errorf("unknown cgroup driver %q: want %s or %s", driver, Cgroupfs, Systemd)
}

// New examines the machine. An empty driver means systemd where that runs and
// cgroupfs elsewhere; an empty parent means /crisp or crisp.slice.
func New(driver, parent string) (*Node, error) {
	if err := CheckDriver(driver); err != nil {
		return nil, err
	}
	n := &Node{driver: driver, parent: parent, v2: cgroups.IsCgroup2UnifiedMode()}

	if driver == "" {
		n.driver = Cgroupfs
		if systemd.IsRunningSystemd() {
			n.driver = Systemd
		}
	}

	if n.parent == "" {
		n.parent = "/crisp"
		if n.driver == Systemd {
			n.parent = "crisp.slice"
		}
	}

	if _, err := n.checkParent(n.parent); err != nil {
		return nil, err
	}
	list, err := findHierarchies()
	if err != nil {
		return nil, err
	}

	if err := n.useHierarchies(list); err != nil {
		closeOwn(list)
		return nil, err
	}
	n.seen = []byte{}
	n.probe()
	return n, nil
}

// useHierarchies sorts the hierarchies and checks that the required ones are mounted.
func (n *Node) useHierarchies(list []hierarchy) error {
	n.hierarchies = slices.Clone(list)
	rank := func(h hierarchy) int {
		switch {
		case h.unified() && n.v2:
			return 0
		case h.limited():
			return 1
		case !h.unified():
			return 2
		default:
			return 3
		}
	}

	slices.SortStableFunc(n.hierarchies, func(a, b hierarchy) int { return rank(a) - rank(b) })

	n.where = make(map[string]int)
	for i, h := range n.hierarchies {
		if h.unified() {
			n.root = h.dir
		}
		for _, c := range h.controllers {
			n.where[c] = i
		}
	}

	if n.v2 {
		if n.root == "" {
			return fmt.Errorf("find the unified cgroup hierarchy: not mounted: %w", ErrUnsupported)
		}
		return nil
	}

	for _, c := range []string{"cpu", "cpuacct", "memory", "devices", "freezer"} {
		if _, ok := n.where[c]; !ok {
			return fmt.Errorf("find cgroup controller %s: not mounted: %w", c, ErrUnsupported)
		}
	}

	return nil
}

// probe determines what can be limited.
func (n *Node) probe() {
	if n.v2 {
		have, _ := cgroups.ReadFile(n.root, "cgroup.controllers")
		for _, c := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
			if !slices.Contains(strings.Fields(have), c) {
				n.degraded = append(n.degraded, "cgroup controller "+c+" is not available: its limits and statistics are missing")
			}
		}

		n.swap = swapAccounted()
		if slices.Contains(strings.Fields(have), "hugetlb") {
			n.pageSizes = cgroups.HugePageSizes()
		}
	} else {
		for _, c := range []string{"cpuset", "pids", "blkio"} {
			if _, ok := n.where[c]; !ok {
				n.degraded = append(n.degraded, "cgroup controller "+c+" is not mounted: its limits and statistics are missing")
			}
		}

		n.swap = exists(filepath.Join(n.mount("memory"), "memory.memsw.limit_in_bytes"))
		if _, ok := n.where["hugetlb"]; ok {
			n.pageSizes = cgroups.HugePageSizes()
		}
	}
	if !n.swap {
		n.degraded = append(n.degraded, "the kernel does not account swap: swap limits are not enforced")
	}
	if len(n.pageSizes) == 0 {
		n.degraded = append(n.degraded, "the kernel cannot limit huge pages: huge page limits are not enforced")
	}
}

// swapAccounted reports whether version 2 groups have memory.swap.max. The root
// group never has it, so look in a child group, or in the process's own.
func swapAccounted() bool {
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err == nil && own[""] != "/" && exists(filepath.Join(mountPoint, own[""], "memory.max")) {
		return exists(filepath.Join(mountPoint, own[""], "memory.swap.max"))
	}
	// In the root group: the kernel creates the file unless disabled.
	cmdline, err := os.ReadFile("/proc/cmdline")
	return err != nil || !slices.Contains(strings.Fields(string(cmdline)), "swapaccount=0")
}

// Driver is the driver in use, for RuntimeConfig.
func (n *Node) Driver() string { return n.driver }

// V2 reports whether the machine uses cgroup v2.
func (n *Node) V2() bool { return n.v2 }

// Degraded describes what the machine's cgroups lack, for a warning at start.
// Limits that need it are ignored rather than refused.
func (n *Node) Degraded() []string { return slices.Clone(n.degraded) }

// Close removes the default parent if it is empty and was created by this
// package. Groups stay, and so does a slice: stopping it would kill its
// processes, and an empty one costs nothing and is reused.
func (n *Node) Close() error {
	defer func() { closeOwn(n.all()) }()
	errs := []error{n.filters.close()}
	if n.driver == Systemd {
		return errs[0]
	}

	for _, dir := range n.dirs(n.parent) {
		if !ours(dir) {
			continue
		}
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, &os.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}

	return errors.Join(errs...)
}

// mount is the root of the hierarchy of a controller, "" if there is none.
func (n *Node) mount(controller string) string {
	if n.v2 {
		return n.root
	}
	if i, ok := n.where[controller]; ok {
		return n.all()[i].dir
	}
	return ""
}

// dirs are the directories of a group, one in each hierarchy. The path is
// relative to the hierarchy's root.
func (n *Node) dirs(path string) []string {
	return dirsIn(n.all(), path)
}

func dirsIn(list []hierarchy, path string) []string {
	dirs := make([]string, len(list))
	for i, h := range list {
		dirs[i] = filepath.Join(h.dir, path)
	}
	return dirs
}

// unifiedDir is a group's directory in the unified hierarchy, "" if there is none.
func (g *Group) unifiedDir() string {
	for i := range g.dirs {
		if g.in[i].unified() {
			return g.dirs[i]
		}
	}
	return ""
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil
}
