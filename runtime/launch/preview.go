package launch

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/host"
	"crisp/runtime/plan"
)

// Preview returns the plan that would start a container on this machine, as far
// as it follows from the spec. The container sees the given cgroup v1
// hierarchies; with inPod it joins the namespaces of a pod.
func Preview(s *specs.Spec, f host.Facts, show []plan.Hierarchy, inPod bool) (*plan.Plan, error) {
	l := New(nil, f)
	defer l.Close()
	o, err := l.options(&Request{Name: "start container", Spec: s, InPod: inPod, Hierarchies: show}, s.Process)
	if err != nil {
		return nil, err
	}

	o.NoStdout, o.NoStderr = false, false
	o.DeviceNodes = needsNodes(s)
	o.BundleAt, o.BundleRoot = "/run/crisp", "hooks/ID/rootfs"
	if o.CgroupV2 = f.CgroupV2.OK(); !o.CgroupV2 {
		o.CgroupTasks = len(o.Hierarchies)
	}
	return plan.Container(s, o)
}
