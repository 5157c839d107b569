package host

import "fmt"

// The oldest kernel that pods run on is that of RHEL 9.
const (
	oldestMajor = 5
	oldestMinor = 14
)

// TooOld returns an error if the kernel is older than what crisp can run on. A
// kernel whose version is unknown is tried.
func (f Facts) TooOld() error {
	if f.Kernel == (Version{}) || f.Kernel.AtLeast(oldestMajor, oldestMinor) {
		return nil
	}
	return fmt.Errorf("the kernel of this node, Linux %s, is too old: crisp needs Linux %d.%d or later", f.Kernel, oldestMajor, oldestMinor)
}

// Feature is a feature of the kernel that crisp uses where it exists.
type Feature struct {
	// Name is a phrase, for messages: "ID-mapped mounts of tmpfs".
	Name string
	// Major and Minor are the first version of the upstream kernel with it.
	// Distributions have some of them in older ones.
	Major, Minor int
	// Instead is what is done without it, Lost what then does not work; empty if
	// nothing is.
	Instead, Lost string

	// has is the answer of a probe, nil if the version decides.
	has func(*Facts) Answer
}

// Features lists the kernel features that some supported kernel may lack, the
// oldest first. docs/kernels.md is generated from it.
func Features() []Feature {
	return []Feature{
		{
			Name: "ID-mapped layers of an overlay", Major: 5, Minor: 19, has: func(f *Facts) Answer { return f.OverlayIDMap },
			Instead: "nothing: the container is refused", Lost: "pods with a user namespace (hostUsers: false)",
		},
		{
			Name: "memory.peak of cgroup version 2", Major: 5, Minor: 19, has: func(f *Facts) Answer {
				if !f.CgroupV2.OK() {
					return Unknown // version 1 has a file of its own
				}
				return f.since(5, 19)
			},
			Lost: "the metric container_memory_max_usage_bytes",
		},
		{
			Name: "the number of a process's descriptors as the size of their directory", Major: 6, Minor: 2,
			Instead: "the directory is read, which takes longer",
		},
		{
			Name: "ID-mapped mounts of tmpfs", Major: 6, Minor: 3,
			Instead: "nothing: the container is refused",
			Lost:    "volumes in memory in pods with a user namespace: secrets, service account tokens, emptyDir with medium Memory",
		},
		{
			Name: "memfds that are declared executable (MFD_EXEC)", Major: 6, Minor: 3,
			Instead: "they are executable without a declaration",
		},
		{
			Name: "layers of an overlay added one by one", Major: 6, Minor: 7,
			Instead: "all layers are one string; if it is longer than 255 bytes, or the pod has a user namespace, they are mounted in a private mount namespace first",
		},
		{
			Name: "equal pages merged in what a process starts (PR_SET_MEMORY_MERGE)", Major: 6, Minor: 7,
			Instead: "nothing: it is refused", Lost: "crisp clone --merge",
		},
		{
			Name: "signals to the process group of a pidfd", Major: 6, Minor: 9,
			Instead: "the members of the group are looked for in /proc and killed one by one",
		},
		{
			Name: "clones of detached mounts", Major: 6, Minor: 15, has: func(f *Facts) Answer { return f.CloneDetached },
			Instead: "mounts are attached in a private mount namespace first, which takes longer",
		},
		{
			Name: "exit statuses by pidfd", Major: 6, Minor: 15, has: func(f *Facts) Answer { return f.PidfdExit },
			Instead: "the keeper is the parent of all containers, and the daemon adopts those of a keeper that died and that it had started",
			Lost:    "if daemon and keeper are both killed, the exit code of a container that exits meanwhile: 255, reason Unknown",
		},
		{
			Name: "the procfs mount option pidns", Major: 6, Minor: 18,
			Instead: "a container that joins a PID namespace gets a clone of the procfs of a process in it",
			Lost:    "crisp run with a bundle that joins a PID namespace by path",
		},
	}
}

// since answers by the version.
func (f *Facts) since(major, minor int) Answer {
	if f.Kernel == (Version{}) {
		return Unknown
	}
	return answer(f.Kernel.AtLeast(major, minor))
}

// Lacks lists the features that the kernel is known to lack.
func (f Facts) Lacks() []Feature {
	var list []Feature
	for _, feature := range Features() {
		has := f.since(feature.Major, feature.Minor)
		if feature.has != nil {
			has = feature.has(&f)
		}
		if has == No {
			list = append(list, feature)
		}
	}
	return list
}
