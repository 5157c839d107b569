package stats

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netns"
	"crisp/runtime/cgroup"
)

// Source provides the running pods. It must not block: the snapshot that it
// returns is read while pods come and go.
type Source interface {
	Pods() []Pod
}

// Pod is one pod sandbox.
type Pod struct {
	Attributes *runtimeapi.PodSandboxAttributes
	// Ready pods have stats; others only have their attributes.
	Ready     bool
	StartedAt time.Time
	// Group is the control group of the pod as a whole, nil if it has none
	// of its own; then its containers' stats are added up.
	Group Group
	// Network lists the pod's interfaces, nil for the host's network.
	Network    func() ([]netns.InterfaceStats, error)
	Containers []Container
}

// Container is one container of a pod.
type Container struct {
	Attributes *runtimeapi.ContainerAttributes
	// Image is the name of the image, for metrics.
	Image string
	// Running is false before the start and after the exit.
	Running   bool
	StartedAt time.Time
	// Pid is the first process, 0 when there is none.
	Pid int
	// Group is nil when the container has no control group (any more).
	Group Group
	// Resources are the current ones.
	Resources *runtimeapi.LinuxContainerResources
	// Layer is the directory of the writable layer, "" if there is none.
	Layer string
}

// Group is a control group, as package cgroup's.
type Group interface {
	// Relative is the group's path below the root of its hierarchy.
	Relative() string
	Stats() (*cgroup.Stats, error)
	// Usage is Stats without the values that only metrics use.
	Usage() (*cgroup.Stats, error)
	Pids() ([]int, error)
}
