package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crisp/cri/admin"
	"crisp/network/netns"
	"crisp/runtime/cgroup"
)

// known are the IDs that a daemon knows.
type known map[string]bool

func knownTo(s admin.State) known {
	k := known{}
	for _, p := range s.Pods {
		k[p.ID] = true
		for _, c := range p.Containers {
			k[c.ID] = true
		}
	}
	for _, op := range s.Operations {
		k[op.SandboxID], k[op.ContainerID] = true, true
	}
	return k
}

// has reports whether an ID, or the beginning of one, is known.
func (k known) has(id string) bool {
	for full := range k {
		if full != "" && strings.HasPrefix(full, id) {
			return true
		}
	}
	return false
}

// leftovers looks for what pods have left that no longer exist.
func leftovers(ctx context.Context, n *Node) []Finding {
	state, err := n.now()
	if err != nil || !state.Ready {
		return []Finding{ok("not judged without a daemon that serves: the next one removes what is left when it starts")}
	}

	k, unsure := n.known(ctx, state)
	looks := []func(*Node, known) ([]leftover, error){mounts, records} // in directories of this daemon's alone
	var found []Finding
	if unsure == nil {
		looks = append(looks, namespaces, groups)
	} else {
		found = append(found, warn("wait, or look at the other crisp", "network namespaces and cgroups are not judged: %v", unsure))
	}
	for _, look := range looks {
		list, err := look(n, k)
		if err != nil {
			found = append(found, warn("", "not everything could be looked for: %v", err))
		}
		for _, l := range list {
			found = append(found, l.finding(n))
		}
	}
	return unless(found, "nothing is left of pods that no longer exist")
}

// leftover is something that belongs to a pod or container which does not exist.
type leftover struct {
	kind, path, id string
	remove         func(context.Context) error // nil if only the daemon can
}

func (l leftover) finding(n *Node) Finding {
	f := warn("crisp doctor --fix removes it", "%s %s belongs to %s, which does not exist", l.kind, l.path, l.id)
	if l.kind == kindOccupied {
		f.Todo = "if another crisp shares cgroup_parent, and its daemon does not run: start it; else kill them"
		return f
	}
	if l.remove == nil {
		f.Todo = "restart the daemon, which removes it when it starts (systemctl restart crisp); pods keep running"
		return f
	}

	f.fix = func(ctx context.Context) error {
		// A pod may have been created meanwhile.
		state, err := n.State(ctx)
		if err != nil {
			return err
		}
		if !state.Ready {
			return fmt.Errorf("the daemon has restarted and does not know its pods yet: try again")
		}
		k, err := n.known(ctx, state)
		if err != nil {
			return err
		}
		if k.has(l.id) {
			return fmt.Errorf("%s belongs to a pod now", l.path)
		}
		return l.remove(ctx)
	}
	return f
}

// old reports whether a file has not changed for a while.
func (n *Node) old(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && time.Since(time.Unix(st.Ctim.Unix())) > n.Settled
}

var (
	netnsName = regexp.MustCompile(`^crisp-([0-9a-f]{20})$`)
	idPattern = regexp.MustCompile(`[0-9a-f]{64}`)
	wholeID   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// namespaces finds pinned network namespaces.
func namespaces(n *Node, k known) ([]leftover, error) {
	var list []leftover
	entries, err := readDir(n.Config.NetNSDir)
	for _, e := range entries {
		m := netnsName.FindStringSubmatch(e)
		path := filepath.Join(n.Config.NetNSDir, e)
		if m == nil || k.has(m[1]) || !n.old(path) {
			continue
		}
		list = append(list, leftover{"network namespace", path, m[1], func(context.Context) error { return netns.Unpin(path) }})
	}
	return list, err
}

// groups finds cgroups below crisp's own parent, in any hierarchy. Those below
// kubelet's may be of another runtime. Of a group with processes nothing is known: they
// may be those of another crisp whose daemon does not run.
func groups(n *Node, k known) ([]leftover, error) {
	node, err := cgroup.New(n.Config.CgroupDriver, n.Config.CgroupParent)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	parent, err := node.Parent("")
	if err != nil {
		return nil, nil // nothing was ever created
	}
	hierarchies, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}

	var list []leftover
	seen := map[string]bool{}
	for _, h := range hierarchies {
		dir := filepath.Join(h.Mountpoint, parent.Relative())
		entries, err := readDir(dir)
		if err != nil {
			return list, err
		}
		for _, e := range entries {
			id := idPattern.FindString(e)
			if id == "" || e != id && e != "cri-containerd-"+id+".scope" || k.has(id) || seen[id] || !n.old(filepath.Join(dir, e)) {
				continue
			}
			seen[id] = true
			path := filepath.Join(parent.Relative(), e)
			l := leftover{"cgroup", filepath.Join(dir, e), id, func(context.Context) error { return removeGroup(hierarchies, path) }}
			if occupied(l.path) {
				l.kind, l.remove = kindOccupied, nil
			}
			list = append(list, l)
		}
	}
	return list, nil
}

// kindOccupied is a group that no known pod has, with processes.
const kindOccupied = "cgroup with processes"

// occupied reports whether a cgroup has processes; of version 2, also in groups below it.
func occupied(dir string) bool {
	events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if err == nil {
		return strings.Contains(string(events), "populated 1")
	}
	pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	return err == nil && len(pids) > 0
}

// removeGroup removes a cgroup from all hierarchies. The kernel refuses if it has
// processes, or groups below it.
func removeGroup(hierarchies []*mountinfo.Info, path string) error {
	var errs []error
	for _, h := range hierarchies {
		if err := unix.Rmdir(filepath.Join(h.Mountpoint, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup %s of %s: %w", path, h.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// mounts finds mounts in directories of pods and containers, where crisp makes none
// that lasts.
func mounts(n *Node, k known) ([]leftover, error) {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.Config.Root))
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	var list []leftover
	for _, m := range all {
		rel, err := filepath.Rel(n.Config.Root, m.Mountpoint)
		parts := strings.Split(rel, "/")
		if err != nil || len(parts) < 2 || parts[0] != "pods" && (parts[0] != "image" || parts[1] != "containers") {
			continue
		}
		if id := idPattern.FindString(rel); id != "" && !k.has(id) {
			path := m.Mountpoint
			list = append(list, leftover{"mount", path, id, func(context.Context) error { return unix.Unmount(path, unix.UMOUNT_NOFOLLOW) }})
		}
	}
	return list, nil
}

// records finds directories of pods, writable layers and addresses, which only the
// daemon can remove.
func records(n *Node, k known) ([]leftover, error) {
	var list []leftover
	for kind, dir := range map[string]string{"directory": filepath.Join(n.Config.Root, "pods"), "writable layer": filepath.Join(n.Config.Root, "image", "containers")} {
		entries, err := readDir(dir)
		if err != nil {
			return list, err
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e); wholeID.MatchString(e) && !k.has(e) && n.old(path) {
				list = append(list, leftover{kind: kind, path: path, id: e})
			}
		}
	}

	results := filepath.Join(n.Config.Root, "cni", "results")
	entries, err := readDir(results)
	for _, e := range entries {
		if id := idPattern.FindString(e); id != "" && !k.has(id) && n.old(filepath.Join(results, e)) {
			list = append(list, leftover{kind: "network attachment, with its addresses,", path: filepath.Join(results, e), id: id})
		}
	}
	return list, err
}

// readDir lists the names in a directory, none if it does not exist.
func readDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}
