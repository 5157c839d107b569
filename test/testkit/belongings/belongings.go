// Package belongings lists the resources of pods on a node. It also queries the
// keeper; if the lab did that, tests of the keeper's packages could not use
// testkit.
package belongings

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// List lists all resources of pods on the node, one per line.
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
	add("descriptor of the keeper:", descriptors(keeper)) // before the query, which takes one

	held, err := held(ctx, l)
	add("held by the keeper:", held)
	return all, err
}

// detached names the root of a mount that is in no mount table by its file system.
func detached(fd string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(fd, &st); err != nil {
		return "/ of an unknown file system"
	}
	for magic, name := range map[int64]string{
		unix.PROC_SUPER_MAGIC: "procfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.TMPFS_MAGIC: "tmpfs", unix.SYSFS_MAGIC: "sysfs",
		unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.EXT4_SUPER_MAGIC: "ext4",
	} {
		if int64(st.Type) == magic {
			return "/ of " + name
		}
	}
	return fmt.Sprintf("/ of file system %#x", st.Type)
}

// held is what the keeper reports to hold.
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

// deviceFilter is a program for a set of device rules, a few of which the
// daemon caches.
const deviceFilter = "anon_inode:bpf-prog"

// descriptors lists the open files of a process. Those without a name, or with
// one that differs between processes, are counted.
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
		if target == "/" {
			target = detached(filepath.Join(dir, fd))
		}
		if seen[target]++; seen[target] > 1 {
			target = fmt.Sprintf("%s (%d)", target, seen[target])
		}
		all = append(all, target)
	}

	return all
}
