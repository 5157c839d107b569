// Package belongings lists what pods have on a node. It asks the keeper too,
// whose packages' tests could not use testkit if the lab did that.
package belongings

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"crisp/runtime/keeper/client"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// List lists everything that pods have on the node, a line each.
func List(ctx context.Context, l *lab.Lab) ([]string, error) {
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
	add("pod directory", inventory.Names(filepath.Join(l.Dir, "root/pods")))
	add("writable layer", inventory.Names(filepath.Join(l.Dir, "root/image/containers")))
	add("temporary file of images", inventory.Names(filepath.Join(l.Dir, "root/image/tmp")))
	add("network result", inventory.Names(filepath.Join(l.Dir, "root/cni/results")))
	add("exit record", inventory.Names(filepath.Join(l.Dir, "state/exits")))

	for _, p := range inventory.Descendants(keeper) {
		all = append(all, "process "+p.String())
	}
	add("descriptor of the daemon:", descriptors(l.PID()))
	add("descriptor of the keeper:", descriptors(keeper)) // before it is asked, which takes one

	held, err := held(ctx, l)
	add("held by the keeper:", held)
	return all, err
}

// held is what the keeper says it holds.
func held(ctx context.Context, l *lab.Lab) ([]string, error) {
	c, err := client.Connect(ctx, filepath.Join(l.Dir, "state"), "")
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

// deviceFilter is a program for a set of device rules, of which the daemon keeps
// a few for containers to come.
const deviceFilter = "anon_inode:bpf-prog"

// descriptors lists the open files of a process. Those that have no name of
// their own, or one that another process would not have, are counted.
func descriptors(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	seen := map[string]int{}
	var all []string
	for _, fd := range inventory.Names(dir) {
		target, err := os.Readlink(filepath.Join(dir, fd))
		if err != nil || target == deviceFilter {
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
