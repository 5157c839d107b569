package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"crisp/runtime/keeper/client"
	"crisp/test/testkit/inventory"
)

// Belongings lists everything that pods have on the node, a line each.
func (l *Lab) Belongings(ctx context.Context) ([]string, error) {
	keeper, err := l.Keeper()
	if err != nil {
		return nil, err
	}
	var all []string
	add := func(kind string, names []string) {
		for _, name := range names {
			all = append(all, kind+" "+name)
		}
	}
	add("mount", inventory.MountsBelow(l.Dir))
	add("cgroup", inventory.Cgroups(l.Name+"/"))
	add("leased address", l.Leases())
	add("pod folder", names(l.path("root/pods")))
	add("writable layer", names(l.path("root/image/containers")))
	add("network result", names(l.path("root/cni/results")))
	add("exit record", names(l.path("state/exits")))
	for _, p := range inventory.Descendants(keeper) {
		all = append(all, "process "+p.String())
	}
	add("descriptor of the daemon:", descriptors(l.PID()))
	add("descriptor of the keeper:", descriptors(keeper)) // before it is asked, which takes one
	held, err := l.held(ctx)
	add("held by the keeper:", held)
	return all, err
}

// Leases are the addresses that the IPAM plugin has given away.
func (l *Lab) Leases() []string {
	files, _ := filepath.Glob(l.path("ipam/*/*")) // the pattern is good
	var leases []string
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			leases = append(leases, filepath.Base(f))
		}
	}
	return leases
}

// held is what the keeper says it holds.
func (l *Lab) held(ctx context.Context) ([]string, error) {
	c, err := client.Connect(ctx, l.path("state"), "")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	entries, err := c.List(ctx)
	var ids []string
	for _, e := range entries {
		e.Close()
		ids = append(ids, e.ID)
	}
	return ids, err
}

// Keeper is the keeper's process ID.
func (l *Lab) Keeper() (int, error) {
	want := "crisp-keeper\x00" + l.path("state") + "\x00"
	for _, name := range names("/proc") {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if line, err := os.ReadFile(filepath.Join("/proc", name, "cmdline")); err == nil && string(line) == want {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("find the keeper of %s: %w", l.path("state"), os.ErrNotExist)
}

// descriptors lists the open files of a process. Those that have no name of
// their own, or one that another process would not have, are counted.
func descriptors(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	seen := map[string]int{}
	var all []string
	for _, fd := range names(dir) {
		target, err := os.Readlink(filepath.Join(dir, fd))
		if err != nil {
			continue
		}
		if kind, _, ok := strings.Cut(target, ":["); ok {
			target = kind
		}
		if seen[target]++; seen[target] > 1 {
			target = fmt.Sprintf("%s (%d)", target, seen[target])
		}
		all = append(all, target)
	}
	return all
}

// names lists a folder, which may be missing.
func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	all := make([]string, 0, len(entries))
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
