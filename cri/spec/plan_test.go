package spec

import (
	"slices"
	"testing"

	"crisp/runtime/plan"
)

// TestEverySpecHasAPlan builds the program of every golden case, on both
// kinds of cgroup.
func TestEverySpecHasAPlan(t *testing.T) {
	for _, tt := range goldenCases() {
		t.Run(tt.name, func(t *testing.T) {
			in := testInput()
			tt.change(&in)
			r, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}

			for _, o := range []plan.Options{
				{CgroupV2: true},
				{CgroupTasks: 2, Hierarchies: []plan.Hierarchy{{Dir: "cpu,cpuacct", Options: []string{"cpu", "cpuacct"}}}},
			} {
				o.Name, o.PodBase, o.Terminal = tt.name, true, r.Spec.Process.Terminal
				p, err := plan.Container(r.Spec, o)
				if err != nil {
					t.Error(err)
					continue
				}

				if err := p.Validate(); err != nil {
					t.Error(err)
				}
				checkHeld(t, p, r)
			}
		})
	}
}

// checkHeld compares what a plan wants to be held with what a caller that
// reads the result provides.
func checkHeld(t *testing.T, p *plan.Plan, r *Result) {
	t.Helper()
	known := []string{
		"rootfs", "stdin", "stdout", "stderr", "cgroup", "cgroup/0", "cgroup/1",
		"ns/user", "ns/net", "ns/ipc", "ns/uts", "ns/mnt", "ns/pid",
	}
	for i := range r.Images {
		known = append(known, imageName(i))
	}
	for _, in := range p.Inputs {
		if in.Kind == plan.InputHeld && !slices.Contains(known, in.Path) {
			t.Errorf("plan wants %q to be held", in.Path)
		}
	}
}

func TestSandboxHasAPlan(t *testing.T) {
	for _, change := range []func(*Input){func(*Input) {}, (*Input).userns, func(in *Input) { in.podSecurity().NamespaceOptions.Pid = ofPod }} {
		in := testInput()
		change(&in)
		o, err := SandboxOptions(in.Sandbox)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plan.Sandbox(o); err != nil {
			t.Error(err)
		}
	}
}
