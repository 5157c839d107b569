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

	has func(*Facts) Answer
}

// Features lists the kernel features that some supported kernel may lack, the
// oldest first. docs/kernels.md is made of it.
func Features() []Feature {
	return []Feature{
		{
			Name: "layers of an overlay with mapped IDs", Major: 5, Minor: 19, has: func(f *Facts) Answer { return f.OverlayIDMap },
			Instead: "nothing: the pod is refused", Lost: "pods with a user namespace (`hostUsers: false`)",
		},
		{
			Name: "`memory.peak` of cgroup version 2", Major: 5, Minor: 19, has: since(5, 19),
			Lost: "the metric `container_memory_max_usage_bytes`",
		},
		{
			Name: "the number of a process's descriptors as the size of a directory", Major: 6, Minor: 2, has: since(6, 2),
			Instead: "the directory is read, which takes longer",
		},
		{
			Name: "ID-mapped mounts of tmpfs", Major: 6, Minor: 3, has: since(6, 3),
			Instead: "nothing: the container is refused",
			Lost:    "volumes in memory (`emptyDir` with medium Memory, secrets, projected volumes) in pods with a user namespace",
		},
		{
			Name: "executable files in memory that are declared as such", Major: 6, Minor: 3, has: since(6, 3),
			Instead: "they are executable without a declaration",
		},
		{
			Name: "layers of an overlay given one by one", Major: 6, Minor: 7, has: since(6, 7),
			Instead: "all layers are given in one string; more than about 60, or those of a pod with a user namespace, are mounted in a private mount namespace first",
		},
		{
			Name: "signals to the process group of a pidfd", Major: 6, Minor: 9, has: since(6, 9),
			Instead: "a command that runs into its time-out is killed alone, and what it started with its container",
		},
		{
			Name: "disk statistics of cgroup version 1 without limits", Major: 6, Minor: 10, has: since(6, 10),
			Instead: "they are there with the BFQ scheduler or a limit", Lost: "the disk metrics of other containers on cgroup version 1",
		},
		{
			Name: "clones of detached mounts", Major: 6, Minor: 15, has: func(f *Facts) Answer { return f.CloneDetached },
			Instead: "mounts are attached in a private mount namespace for the purpose, which takes longer",
		},
		{
			Name: "exit statuses by pidfd", Major: 6, Minor: 15, has: func(f *Facts) Answer { return f.PidfdExit },
			Instead: "the keeper is the parent of all containers, and the daemon that of the keeper it started, so that statuses are lost only if both are killed and another process reaps first",
			Lost:    "in that case the exit code, which is then 255 with reason Unknown",
		},
		{
			Name: "the mount option pidns of procfs", Major: 6, Minor: 17, has: since(6, 17),
			Instead: "a container that joins a PID namespace gets a clone of the procfs of a process in it",
			Lost:    "`crisp run` of a bundle that joins a PID namespace by its path",
		},
	}
}

// since answers by the version where the kernel cannot be asked, or only by doing
// what the answer is for.
func since(major, minor int) func(*Facts) Answer {
	return func(f *Facts) Answer {
		if f.Kernel == (Version{}) {
			return Unknown
		}
		return answer(f.Kernel.AtLeast(major, minor))
	}
}

// Lacks lists the features that the kernel is known to lack.
func (f Facts) Lacks() []Feature {
	var list []Feature
	for _, feature := range Features() {
		if feature.has(&f) == No {
			list = append(list, feature)
		}
	}
	return list
}
