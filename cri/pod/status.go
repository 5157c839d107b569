package pod

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/runtime/untrusted"
)

// state is the CRI state of a sandbox.
func (r *Record) state() runtimeapi.PodSandboxState {
	if r.Ready() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// Item is the sandbox as ListPodSandbox shows it.
func (r *Record) Item() *runtimeapi.PodSandbox {
	cfg := r.Config.Msg
	return &runtimeapi.PodSandbox{
		Id: r.ID, Metadata: cfg.GetMetadata(), State: r.state(), CreatedAt: r.CreatedAt,
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), RuntimeHandler: r.Handler,
	}
}

// Status is the sandbox as PodSandboxStatus shows it.
func (r *Record) Status() *runtimeapi.PodSandboxStatus {
	cfg := r.Config.Msg
	network := &runtimeapi.PodSandboxNetworkStatus{}
	if len(r.IPs) > 0 {
		network.Ip = r.IPs[0]
		for _, ip := range r.IPs[1:] {
			network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}

	return &runtimeapi.PodSandboxStatus{
		Id: r.ID, Metadata: cfg.GetMetadata(), State: r.state(), CreatedAt: r.CreatedAt, Network: network,
		Linux: &runtimeapi.LinuxPodSandboxStatus{
			Namespaces: &runtimeapi.Namespace{Options: spec.NamespaceOptions(cfg)},
		},
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), RuntimeHandler: r.Handler,
	}
}

// ContainerStatuses are those of all listed containers of the pod.
func (r *Record) ContainerStatuses() []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range r.Containers {
		if c.Listed() {
			out = append(out, c.Status())
		}
	}
	return out
}

// Item is the container as ListContainers shows it.
func (c *Container) Item(sandboxID string) *runtimeapi.Container {
	cfg := c.Config.Msg
	return &runtimeapi.Container{
		Id: c.ID, PodSandboxId: sandboxID, Metadata: cfg.GetMetadata(), Image: cfg.GetImage(),
		ImageRef: c.ImageID, ImageId: c.ImageID, State: c.State(), CreatedAt: c.CreatedAt,
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
	}
}

// Status is the container as ContainerStatus shows it.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	cfg := c.Config.Msg
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: cfg.GetMetadata(), State: c.State(),
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode,
		Image:    imageSpec(cfg.GetImage(), c.ImageRef),
		ImageRef: cmp.Or(c.ImageDigest, c.ImageID), ImageId: c.ImageID, Reason: c.Reason, Message: untrusted.Of(c.Message).Message(maxMessage),
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), Mounts: c.mounts(), LogPath: c.LogPath,
		StopSignal: spec.ToCRI(unix.Signal(c.StopSignal)),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(c.User.UID), Gid: int64(c.User.GID), SupplementalGroups: groups(c.User),
		}},
	}

	if c.Resources != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: inForce(c.Resources.Msg)}
	}
	return st
}

// inForce fills in implied limits: a memory limit without one for swap allows
// no swap.
func inForce(r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if r.GetMemoryLimitInBytes() <= 0 || r.GetMemorySwapLimitInBytes() != 0 {
		return r
	}
	r = proto.Clone(r).(*runtimeapi.LinuxContainerResources)
	r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	return r
}

// maxMessage bounds the message in a container's status.
const maxMessage = 16 << 10

func imageSpec(img *runtimeapi.ImageSpec, ref string) *runtimeapi.ImageSpec {
	out := &runtimeapi.ImageSpec{}
	proto.Merge(out, img)
	out.Image = ref
	return out
}

func groups(u UserIDs) []int64 {
	out := make([]int64, 0, len(u.Groups))
	for _, g := range u.Groups {
		out = append(out, int64(g))
	}
	return out
}

// mounts returns the configured mounts, with the ids of the images of image
// volumes.
func (c *Container) mounts() []*runtimeapi.Mount {
	refs := map[string]string{}
	for _, v := range c.ImageVolumes {
		refs[v.Path] = v.ImageID
	}
	var out []*runtimeapi.Mount
	for _, m := range c.Config.Msg.GetMounts() {
		if m.GetImage() != nil {
			m = proto.Clone(m).(*runtimeapi.Mount)
			m.Image.ImageRef = refs[m.GetContainerPath()]
		}
		out = append(out, m)
	}
	return out
}

// ListSandboxes returns the sandboxes that match a filter, newest
// first. An id in the filter may be a prefix.
func (m *Manager) ListSandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	out := []*runtimeapi.PodSandbox{}
	for _, r := range m.Sandboxes() {
		if !hasPrefix(r.ID, f.GetId()) || !hasLabels(r.Config.Msg.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		if f.GetState() != nil && f.GetState().GetState() != r.state() {
			continue
		}
		out = append(out, r.Item())
	}
	return out
}

// ListContainers returns the containers that match a filter.
func (m *Manager) ListContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	out := []*runtimeapi.Container{}
	for _, r := range m.Sandboxes() {
		if !hasPrefix(r.ID, f.GetPodSandboxId()) {
			continue
		}
		for _, c := range r.Containers {
			if !c.Listed() || !hasPrefix(c.ID, f.GetId()) || !hasLabels(c.Config.Msg.GetLabels(), f.GetLabelSelector()) {
				continue
			}
			if f.GetState() != nil && f.GetState().GetState() != c.State() {
				continue
			}
			out = append(out, c.Item(r.ID))
		}
	}

	slices.SortStableFunc(out, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	return out
}

func hasPrefix(id, prefix string) bool {
	return len(id) >= len(prefix) && id[:len(prefix)] == prefix
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
