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
	return l.preview(&Request{Name: "start container", Spec: s, InPod: inPod, Hierarchies: show})
}

// Check returns the error that a start of a container would fail with because of
// its spec alone. Of the request it uses what is not held.
func (l *Launcher) Check(r Request) error {
	p, err := l.preview(&r)
	if err != nil {
		return err
	}
	return p.Validate()
}

func (l *Launcher) preview(r *Request) (*plan.Plan, error) {
	o, err := l.options(r, r.Spec.Process)
	if err != nil {
		return nil, err
	}

	o.NoStdout, o.NoStderr = false, false
	o.DeviceNodes = needsNodes(r.Spec)
	o.BundleAt, o.BundleRoot = "/run/crisp", "hooks/ID/rootfs"
	if o.CgroupV2 = l.unified; !o.CgroupV2 {
		o.CgroupTasks = len(o.Hierarchies)
	}
	return plan.Container(r.Spec, o)
}
