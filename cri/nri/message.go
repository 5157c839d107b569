package nri

import (
	"time"
	"unicode/utf8"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/pod"
)

// podOf describes a sandbox.
func podOf(r *pod.Record) *api.PodSandbox {
	cfg := r.Config.Msg
	p := &api.PodSandbox{
		Id: r.ID, Name: cfg.GetMetadata().GetName(), Uid: cfg.GetMetadata().GetUid(), Namespace: cfg.GetMetadata().GetNamespace(),
		Labels: api.DupStringMap(cfg.GetLabels()), Annotations: api.DupStringMap(cfg.GetAnnotations()),
		RuntimeHandler: r.Handler, Ips: api.DupStringSlice(r.IPs),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: fromCRI(cfg.GetLinux().GetOverhead()), PodResources: fromCRI(cfg.GetLinux().GetResources()),
			CgroupParent: cfg.GetLinux().GetCgroupParent(),
		},
	}

	if r.Overhead != nil {
		p.Linux.PodOverhead = fromCRI(r.Overhead.Msg)
	}
	if r.Resources != nil {
		p.Linux.PodResources = fromCRI(r.Resources.Msg)
	}
	if r.NetNS != "" {
		p.Linux.Namespaces = append(p.Linux.Namespaces, &api.LinuxNamespace{Type: string(specs.NetworkNamespace), Path: r.NetNS})
	}
	if r.Pause != nil {
		p.Pid = uint32(r.Pause.Pid)
	}
	return p
}

// containerOf describes a container.
func containerOf(v pod.View) *api.Container {
	r := v.Container
	cfg := r.Config.Msg
	c := &api.Container{
		Id: r.ID, PodSandboxId: v.Pod.ID, Name: cfg.GetMetadata().GetName(), State: stateOf(r.State()),
		Labels: api.DupStringMap(cfg.GetLabels()), Annotations: api.DupStringMap(cfg.GetAnnotations()),
		CreatedAt: seconds(r.CreatedAt), StartedAt: seconds(r.StartedAt), FinishedAt: seconds(r.FinishedAt),
		ExitCode: r.ExitCode, StatusReason: r.Reason, StatusMessage: r.Message,
		User:  &api.User{Uid: r.User.UID, Gid: r.User.GID, AdditionalGids: r.User.Groups},
		Image: &api.Image{Name: r.ImageRef, Digest: r.ImageDigest, ConfigDigest: r.ImageID},
		Linux: &api.LinuxContainer{CgroupsPath: r.CgroupPath, SeccompProfile: seccompOf(cfg)},
	}

	if r.Process != nil {
		c.Pid = uint32(r.Process.Pid)
	}
	for _, d := range cfg.GetCDIDevices() {
		c.CDIDevices = append(c.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if v.Spec != nil {
		describe(c, v.Spec)
	}
	return c
}

// describe adds what a spec has.
func describe(c *api.Container, s *specs.Spec) {
	c.Mounts, c.Hooks = api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	if p := s.Process; p != nil {
		c.Args = api.DupStringSlice(p.Args)
		for _, kv := range p.Env {
			if utf8.ValidString(kv) { // the protocol has no room for others
				c.Env = append(c.Env, kv)
			}
		}
		for _, l := range p.Rlimits {
			c.Rlimits = append(c.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		c.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		if p.IOPriority != nil {
			c.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		}
		if p.Scheduler != nil {
			c.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
		// The record does not have it before the container is made.
		c.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
	}

	l := s.Linux
	if l == nil {
		return
	}
	c.Linux.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
	c.Linux.Devices = api.FromOCILinuxDevices(l.Devices)
	c.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
	c.Linux.Sysctl = api.DupStringMap(l.Sysctl)
	if l.Seccomp != nil {
		c.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	c.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
}

// stateOf translates a state.
func stateOf(s runtimeapi.ContainerState) api.ContainerState {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return api.ContainerState_CONTAINER_CREATED
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return api.ContainerState_CONTAINER_RUNNING
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

// seconds translates a time in nanoseconds to the protocol's seconds.
func seconds(ns int64) int64 { return ns / int64(time.Second) }

// seccompOf is the requested kind of seccomp profile, nil for none.
func seccompOf(cfg *runtimeapi.ContainerConfig) *api.SecurityProfile {
	s := cfg.GetLinux().GetSecurityContext().GetSeccomp()
	if s == nil {
		return nil
	}
	return &api.SecurityProfile{
		// The numbers of both enumerations are the same.
		ProfileType: api.SecurityProfile_ProfileType(s.GetProfileType()), LocalhostRef: s.GetLocalhostRef(),
	}
}

// maxKnown bounds the description of one pod or container when a plugin is
// synchronised, in bytes: a message has room for several.
const maxKnown = 128 << 10

// briefPod leaves out what makes a description too big, which a pod's author decides.
func briefPod(p *api.PodSandbox) *api.PodSandbox {
	shorten(p, func() { p.Annotations = nil }, func() { p.Labels = nil })
	return p
}

// briefContainer is briefPod for a container.
func briefContainer(c *api.Container) *api.Container {
	shorten(
		c, func() { c.Env = nil }, func() { c.Args = nil }, func() { c.Annotations = nil }, func() { c.Labels = nil },
		func() { c.Hooks = nil }, func() { c.Mounts = nil }, func() { c.Linux.SeccompPolicy = nil }, func() { c.Linux.Devices = nil },
		func() { c.Linux.Sysctl = nil }, func() { c.Rlimits = nil }, func() { c.CDIDevices = nil }, func() { c.User = nil },
		func() { c.StatusMessage = "" },
	)
	return c
}

// shorten drops parts of a message in turn until it is small enough.
func shorten(m interface {
	proto.Message
	GetId() string
}, drop ...func()) {
	dropped := 0
	for ; proto.Size(m) > maxKnown && dropped < len(drop); dropped++ {
		drop[dropped]()
	}
	if dropped > 0 {
		klog.InfoS("Plugins are not told all of a pod or container that exists: it has too much", "id", m.GetId(), "limit", maxKnown)
	}
}
