package nri

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/cri/spec"
	"crisp/runtime/hook"
)

// supported refuses adjustments that would have no effect, or that are not a
// plugin's to make.
func supported(a *api.ContainerAdjustment) error {
	l := a.GetLinux()
	if err := refuse([]refusal{
		{l.GetCgroupsPath() != "", "the cgroup's path, which follows from kubelet's"},
		{len(l.GetNamespaces()) > 0, "namespaces, which are the pod's"},
		// The library translates it to none at all.
		{unknown(api.IOPrioClass_name, l.GetIoPriority().GetClass()), "an unknown I/O priority class"},
		{unknown(api.MpolMode_name, l.GetMemoryPolicy().GetMode()), "an unknown memory policy"},
	}); err != nil {
		return err
	}
	return supportedLimits(l.GetResources())
}

// supportedLimits refuses limits that would have no effect.
func supportedLimits(r *api.LinuxResources) error {
	return refuse([]refusal{
		{r.GetRdtClass() != nil, "an RDT class, of which none is configured"},
		{r.GetBlockioClass() != nil, "a block I/O class, of which none is configured"},
		{r.GetMemory().GetKernel() != nil, "a limit of kernel memory, which kernels ignore"},
		{r.GetMemory().GetKernelTcp() != nil, "a limit of TCP buffers, which cgroup version 2 does not have"},
	})
}

// refusal is what is not supported, if it is set.
type refusal struct {
	set  bool
	what string
}

func refuse(list []refusal) error {
	for _, c := range list {
		if c.set {
			return fmt.Errorf("%w: %s", ErrUnsupported, c.what)
		}
	}
	return nil
}

// unknown reports whether a number has no name in an enumeration.
func unknown[E ~int32](names map[int32]string, value E) bool {
	_, ok := names[int32(value)]
	return !ok
}

// rdt reports whether anything of Intel RDT is set: the library always has the
// message.
func rdt(r *api.LinuxRdt) bool {
	return r.GetClosId() != nil || r.GetSchemata() != nil || r.GetEnableMonitoring() != nil || r.GetRemove()
}

// remove removes what plugins removed of variables, devices and sysctls. The
// library's answer does not have that: it removes it from the container that it
// shows to the next plugin.
func remove(s *specs.Spec, before, after *api.Container) {
	env := gone(before.GetEnv(), after.GetEnv(), envName)
	s.Process.Env = slices.DeleteFunc(slices.Clone(s.Process.Env), func(kv string) bool { return env[envName(kv)] })

	devices := gone(before.GetLinux().GetDevices(), after.GetLinux().GetDevices(), (*api.LinuxDevice).GetPath)
	s.Linux.Devices = slices.DeleteFunc(slices.Clone(s.Linux.Devices), func(d specs.LinuxDevice) bool { return devices[d.Path] })

	for key := range before.GetLinux().GetSysctl() {
		if _, ok := after.GetLinux().GetSysctl()[key]; !ok {
			delete(s.Linux.Sysctl, key)
		}
	}
}

// gone returns the names of those elements of before that after does not have.
func gone[T any](before, after []T, name func(T) string) map[string]bool {
	names := map[string]bool{}
	for _, v := range before {
		names[name(v)] = true
	}
	for _, v := range after {
		delete(names, name(v))
	}
	return names
}

func envName(kv string) string {
	name, _, _ := strings.Cut(kv, "=")
	return name
}

// apply makes a container's adjustments, except for limits.
func apply(out *spec.Result, a *api.ContainerAdjustment, inject func(*specs.Spec, []string) (hook.Sources, error)) error {
	devices := func(s *specs.Spec, names []string) error {
		if len(names) == 0 {
			return nil
		}
		_, err := inject(s, names) // the sources of its hooks are the plugin
		return err
	}
	g := generate.SpecGenerator(editor{out.Spec}, generate.WithCDIDeviceInjector(devices))
	if err := g.Adjust(a); err != nil {
		return err
	}

	if p := a.GetLinux().GetSeccompPolicy(); p.GetDefaultErrno() != nil {
		number := uint(p.GetDefaultErrno().GetValue()) // the generator leaves it out
		out.Spec.Linux.Seccomp.DefaultErrnoRet = &number
	}
	return checkHooks(out)
}

// source is that of a plugin's hook, for errors and logs.
const source = "plugin of the Node Resource Interface"

// checkHooks gives the hooks of plugins a source, and checks all.
func checkHooks(out *spec.Result) error {
	for _, k := range hook.Kinds() {
		for i, h := range hook.List(out.Spec.Hooks, out.HookSources, k) {
			if i >= len(out.HookSources[k]) {
				if out.HookSources == nil {
					out.HookSources = hook.Sources{}
				}
				out.HookSources[k] = append(out.HookSources[k], source)
				h.Source = source
			}

			warning, err := h.Check()
			if err != nil {
				return err
			}
			if warning != "" && !slices.Contains(out.HookWarnings, warning) {
				out.HookWarnings = append(out.HookWarnings, warning)
			}
		}
	}
	return nil
}

// summary names what is adjusted, "" for nothing.
func summary(a *api.ContainerAdjustment) string {
	if a == nil {
		return ""
	}

	var parts []string
	add := func(set bool, what string) {
		if set {
			parts = append(parts, what)
		}
	}
	l := a.GetLinux()
	add(len(a.GetAnnotations()) > 0, "annotations")
	add(len(a.GetArgs()) > 0, "arguments")
	add(len(a.GetEnv()) > 0, "environment")
	add(len(a.GetMounts()) > 0, "mounts")
	add(a.GetHooks() != nil, "hooks")
	add(len(a.GetRlimits()) > 0, "rlimits")
	add(len(a.GetCDIDevices()) > 0, "CDI devices")
	add(len(l.GetDevices()) > 0, "devices")
	add(l.GetResources() != nil, "limits")
	add(l.GetOomScoreAdj() != nil, "OOM score")
	add(l.GetIoPriority() != nil, "I/O priority")
	add(l.GetScheduler() != nil, "scheduler")
	add(l.GetSeccompPolicy() != nil, "seccomp policy")
	add(l.GetMemoryPolicy() != nil, "memory policy")
	add(len(l.GetSysctl()) > 0, "sysctls")
	add(l.GetCgroupsPath() != "", "cgroup")
	add(len(l.GetNamespaces()) > 0, "namespaces")
	add(len(l.GetNetDevices()) > 0, "network devices")
	add(rdt(l.GetRdt()), "RDT")
	return strings.Join(parts, ", ")
}

// editor changes a spec for the library's generator.
type editor struct{ s *specs.Spec }

func (e editor) Spec() *specs.Spec { return e.s }

func (e editor) resources() *specs.LinuxResources {
	if e.s.Linux.Resources == nil {
		e.s.Linux.Resources = &specs.LinuxResources{}
	}
	return e.s.Linux.Resources
}

func (e editor) AddAnnotation(key, value string) {
	if e.s.Annotations == nil {
		e.s.Annotations = map[string]string{}
	}
	e.s.Annotations[key] = value
}

func (e editor) RemoveAnnotation(key string) { delete(e.s.Annotations, key) }

func (e editor) AddDevice(d specs.LinuxDevice) {
	e.RemoveDevice(d.Path)
	e.s.Linux.Devices = append(e.s.Linux.Devices, d)
}

func (e editor) RemoveDevice(path string) {
	e.s.Linux.Devices = slices.DeleteFunc(e.s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (e editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := e.resources()
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

// Namespaces are refused before, by supported.
func (editor) AddOrReplaceLinuxNamespace(string, string) error { return ErrUnsupported }
func (editor) RemoveLinuxNamespace(string) error               { return ErrUnsupported }
func (editor) SetLinuxCgroupsPath(string)                      {}

func (e editor) hooks() *specs.Hooks {
	if e.s.Hooks == nil {
		e.s.Hooks = &specs.Hooks{}
	}
	return e.s.Hooks
}

func (e editor) AddPreStartHook(h specs.Hook) {
	hooks := e.hooks()
	//lint:ignore SA1019 plugins may still use it
	hooks.Prestart = append(hooks.Prestart, h)
}

func (e editor) AddPostStartHook(h specs.Hook) {
	hooks := e.hooks()
	hooks.Poststart = append(hooks.Poststart, h)
}

func (e editor) AddPostStopHook(h specs.Hook) {
	hooks := e.hooks()
	hooks.Poststop = append(hooks.Poststop, h)
}

func (e editor) ClearProcessEnv() { e.s.Process.Env = nil }

func (e editor) AddProcessEnv(name, value string) {
	e.s.Process.Env = append(e.s.Process.Env, name+"="+value)
}

func (e editor) SetProcessArgs(args []string) { e.s.Process.Args = args }

func (e editor) SetProcessOOMScoreAdj(score int) { e.s.Process.OOMScoreAdj = &score }

func (e editor) ClearMounts()           { e.s.Mounts = nil }
func (e editor) Mounts() []specs.Mount  { return e.s.Mounts }
func (e editor) AddMount(m specs.Mount) { e.s.Mounts = append(e.s.Mounts, m) }

func (e editor) RemoveMount(at string) {
	e.s.Mounts = slices.DeleteFunc(e.s.Mounts, func(m specs.Mount) bool { return m.Destination == at })
}

func (e editor) SetLinuxRootPropagation(p string) error {
	e.s.Linux.RootfsPropagation = p
	return nil
}

func (e editor) AddLinuxSysctl(key, value string) {
	if e.s.Linux.Sysctl == nil {
		e.s.Linux.Sysctl = map[string]string{}
	}
	e.s.Linux.Sysctl[key] = value
}

func (e editor) RemoveLinuxSysctl(key string) { delete(e.s.Linux.Sysctl, key) }

// Limits are recorded with the container, and its spec gets them from there.
func (editor) AddLinuxResourcesHugepageLimit(string, uint64) {}
func (editor) AddLinuxResourcesUnified(string, string)       {}
func (editor) SetLinuxResourcesCPUCpus(string)               {}
func (editor) SetLinuxResourcesCPUMems(string)               {}
func (editor) SetLinuxResourcesCPUPeriod(uint64)             {}
func (editor) SetLinuxResourcesCPUQuota(int64)               {}
func (editor) SetLinuxResourcesCPURealtimePeriod(uint64)     {}
func (editor) SetLinuxResourcesCPURealtimeRuntime(int64)     {}
func (editor) SetLinuxResourcesCPUShares(uint64)             {}
func (editor) SetLinuxResourcesMemoryLimit(int64)            {}
func (editor) SetLinuxResourcesMemorySwap(int64)             {}
