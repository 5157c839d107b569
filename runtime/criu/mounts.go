package criu

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ownTypes are the file systems that CRIU mounts itself, by the types of mounts that a
// container's spec has.
func ownTypes() map[mnt.Fstype]string {
	return map[mnt.Fstype]string{
		mnt.Fstype_PROC: "proc", mnt.Fstype_SYSFS: "sysfs", mnt.Fstype_TMPFS: "tmpfs", mnt.Fstype_DEVPTS: "devpts", mnt.Fstype_MQUEUE: "mqueue",
		mnt.Fstype_CGROUP: "cgroup", mnt.Fstype_CGROUP2: "cgroup",
	}
}

// checkMounts checks that the mounts are those of the container, with no more rights,
// and that none is missing that hides something.
func (i *Inventory) checkMounts(a *Allowed) error {
	at := map[string]*mnt.MntEntry{}
	ids := map[uint32]bool{}
	for _, m := range i.mounts {
		p := m.GetMountpoint()
		if !isClean(p) || !isClean(m.GetRoot()) || ids[m.GetMntId()] {
			return wrong("mount %d of %.200q is at %.200q, or is there twice", m.GetMntId(), m.GetRoot(), p)
		}
		// With CAP_SYS_ADMIN a container may mount over its mounts.
		if _, twice := at[p]; twice && !a.Permitted.Has("CAP_SYS_ADMIN") {
			return forbidden("two mounts at %.200q", p)
		}
		ids[m.GetMntId()], at[p] = true, m
		if err := i.checkMount(a, m); err != nil {
			return fmt.Errorf("mount at %.200q: %w", p, err)
		}
	}

	for p := range a.Mounts {
		if at[p] == nil {
			return differs("the container has one at %.200q, and the images have none", p)
		}
	}
	// What a container's cgroup mount has in it depends on the node.
	for _, p := range slices.Concat(a.Masked, a.Readonly) {
		if !i.hides(a, at, p) {
			return forbidden("%.200q is to be masked or read-only, and the images have no such mount", p)
		}
	}
	if at["/"] == nil {
		return wrong("they have no root file system")
	}
	return i.checkTmpfs(a)
}

// hides reports whether a path is masked, or read-only, by a mount at it or above it.
func (i *Inventory) hides(a *Allowed, at map[string]*mnt.MntEntry, p string) bool {
	if m := at[p]; m != nil {
		return m.GetExtKey() != "" || slices.Contains(a.Readonly, p) && m.GetFlags()&unix.MS_RDONLY != 0
	}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if m := at[dir]; m != nil && m.GetExtKey() != "" && slices.Contains(a.Masked, dir) {
			return true
		}
	}
	return false
}

// isClean reports whether a path is absolute and leads where it seems to.
func isClean(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.ContainsRune(p, 0) && len(p) <= unix.PathMax
}

func (i *Inventory) checkMount(a *Allowed, m *mnt.MntEntry) error {
	p := m.GetMountpoint()
	switch {
	case m.GetWithPlugin() || m.GetDeleted():
		return forbidden("it is mounted by a plugin, or was removed")
	case p == "/":
		if m.GetExtKey() != "" || a.RootReadonly && m.GetFlags()&unix.MS_RDONLY == 0 {
			return forbidden("the root is writable, and must not be, or is from elsewhere")
		}
		return checkPropagation(m, AllowedMount{})
	case m.GetExtKey() != "":
		return checkGiven(a, m)
	}

	kind, own := ownTypes()[mnt.Fstype(m.GetFstype())]
	if !own || kind == "tmpfs" && m.GetRoot() != "/" {
		return forbidden("a file system of type %v, which the container has not of its own", mnt.Fstype(m.GetFstype()))
	}
	if err := checkOptions(kind, m.GetOptions()); err != nil {
		return err
	}
	want, known := a.under(p)
	switch {
	case known && want.Type != "" && a.Mounts[p].Type == want.Type && want.Type != kind && want.Type != "cgroup":
		return forbidden("it is of type %s, and the container's of type %s", kind, want.Type)
	case known && m.GetFlags()&want.Flags != want.Flags:
		return forbidden("it has more rights than the container's")
	case known && kind == "tmpfs" && want.Size > 0:
		if size, ok := sizeOf(m.GetOptions()); !ok || size > want.Size {
			return forbidden("it may have more than %d bytes", want.Size)
		}
	case !known && kind == "proc" && slices.Contains(a.Readonly, p):
		if m.GetFlags()&unix.MS_RDONLY == 0 {
			return forbidden("it is writable, and must not be")
		}
	case !known && kind == "devpts" && p == "/dev/console" && a.Terminal:
	case !known && !a.Permitted.Has("CAP_SYS_ADMIN"):
		return forbidden("the container has none there")
	}
	return nil
}

// checkGiven checks a mount that the caller gives, as it is mounted again with the
// rights that the images have.
func checkGiven(a *Allowed, m *mnt.MntEntry) error {
	p := m.GetMountpoint()
	if m.GetExtKey() != p {
		return wrong("it is named %.200q", m.GetExtKey())
	}
	if slices.Contains(a.Masked, p) || slices.Contains(a.Readonly, p) {
		return checkPropagation(m, AllowedMount{})
	}
	if a.Namespaces[specs.UserNamespace] && slices.ContainsFunc(a.Devices, func(d AllowedDevice) bool { return d.Path == p }) {
		return checkPropagation(m, AllowedMount{}) // nodes cannot be made there
	}

	want, known := a.under(p)
	switch {
	case !known:
		return differs("the images have it, and the container has none there")
	case want.Type != "" && a.Mounts[p].Type != "":
		return forbidden("the container is given none there")
	case m.GetFlags()&want.Flags != want.Flags:
		return forbidden("it has more rights than the container's")
	}
	return checkPropagation(m, want)
}

// checkPropagation checks that no mount gets to the node.
func checkPropagation(m *mnt.MntEntry, want AllowedMount) error {
	if !want.Propagates && (m.GetSharedId() != 0 || m.GetMasterId() != 0) {
		return forbidden("it is shared with the node")
	}
	return nil
}

// checkOptions checks the options of a file system, with which it is mounted.
func checkOptions(kind, options string) error {
	known := map[string][]string{
		"proc": {"hidepid", "gid", "subset"}, "tmpfs": {"size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "inode32", "inode64", "mpol"},
		"devpts": {"gid", "uid", "mode", "ptmxmode", "newinstance", "max"}, "sysfs": nil, "mqueue": nil,
		"cgroup": {
			"name", "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "net_cls", "net_prio", "blkio", "perf_event", "hugetlb", "pids", "rdma", "misc",
			"nsdelegate", "memory_localevents", "memory_recursiveprot", "memory_hugetlb_accounting", "favordynmods", "pids_localevents",
		},
	}[kind]
	for o := range strings.SplitSeq(options, ",") {
		if key, _, _ := strings.Cut(o, "="); o != "" && !slices.Contains(known, key) {
			return forbidden("its option %.100q", o)
		}
	}
	return nil
}

// sizeOf is the size in the options of a tmpfs.
func sizeOf(options string) (int64, bool) {
	size, found := int64(0), false
	for o := range strings.SplitSeq(options, ",") {
		switch key, value, _ := strings.Cut(o, "="); key {
		case "size":
			size, found = parseSize(value)
			if !found {
				return 0, false
			}
		case "nr_blocks":
			return 0, false
		}
	}
	return size, found
}

// checkTmpfs checks what file systems in memory have.
func (i *Inventory) checkTmpfs(a *Allowed) error {
	for minor, t := range i.tmpfs {
		at := slices.IndexFunc(i.mounts, func(m *mnt.MntEntry) bool {
			return mnt.Fstype(m.GetFstype()) == mnt.Fstype_TMPFS && m.GetExtKey() == "" && m.GetRootDev() == minor
		})
		if at < 0 {
			return wrong("they have the content of a tmpfs of device %d, which is not mounted", minor)
		}
		if size, ok := sizeOf(i.mounts[at].GetOptions()); ok && t.bytes > size {
			return wrong("the tmpfs at %.200q has %d bytes", i.mounts[at].GetMountpoint(), t.bytes)
		}
		for _, d := range t.devices {
			if !a.device("", d.Type, d.Major, d.Minor) && !a.Permitted.Has("CAP_MKNOD") {
				return forbidden("the tmpfs at %.200q has device %c %d:%d, and the container has not", i.mounts[at].GetMountpoint(), d.Type, d.Major, d.Minor)
			}
		}
	}
	return nil
}

// mount is the one that a descriptor says that its file is on, nil for none.
func (i *Inventory) mount(id int32) *mnt.MntEntry {
	n := slices.IndexFunc(i.mounts, func(m *mnt.MntEntry) bool { return id >= 0 && m.GetMntId() == uint32(id) })
	if n < 0 {
		return nil
	}
	return i.mounts[n]
}
