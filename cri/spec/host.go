package spec

import (
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
	"crisp/runtime/host"
)

// HostOf returns the facts about the machine that this package needs. Root is
// the machine's file system, from which two features of the memory and hugetlb
// controllers are read.
func HostOf(f host.Facts, root fs.FS) Host {
	h := Host{
		Capabilities:      f.Capabilities.Names(),
		OOMScoreAdjMin:    f.OOMScoreAdj,
		CgroupV2:          f.CgroupV2.OK(),
		AppArmor:          f.AppArmor.OK(),
		Seccomp:           len(f.SeccompActions) > 0,
		IDMapMounts:       f.IDMapMounts.OK(),
		RecursiveReadOnly: f.RecursiveReadOnly.OK(),
		SwapLimit:         limitsSwap(root, f.CgroupV2.OK()),
		StackLimit:        stackLimit(),
	}

	if f.SysResource.OK() {
		h.OOMScoreAdjMin = -1000
	}
	for n := range f.LastCap + 1 {
		if name := capability.Name(n); name != "" {
			h.KnownCapabilities = append(h.KnownCapabilities, name)
		}
	}

	if limitsHugePages(root, h.CgroupV2) {
		h.HugePageSizes = slices.Clone(f.HugePageSizes)
	}
	return h
}

// stackLimit returns the stack limit of this process, which is the keeper's,
// too: neither unit sets one.
func stackLimit() uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_STACK, &l) != nil {
		return 0
	}
	return l.Cur
}

func limitsHugePages(root fs.FS, v2 bool) bool {
	if !v2 {
		return exists(root, "sys/fs/cgroup/hugetlb/tasks")
	}
	controllers, err := fs.ReadFile(root, "sys/fs/cgroup/cgroup.controllers")
	return err == nil && slices.Contains(strings.Fields(string(controllers)), "hugetlb")
}

// limitsSwap looks at the root cgroup on v1. The root cgroup of v2 has no
// limits; there swap is accounted unless it was turned off on the kernel's
// command line.
func limitsSwap(root fs.FS, v2 bool) bool {
	if !v2 {
		return exists(root, "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	}
	cmdline, err := fs.ReadFile(root, "proc/cmdline")
	return err == nil && exists(root, "proc/swaps") && !slices.Contains(strings.Fields(string(cmdline)), "swapaccount=0")
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}
