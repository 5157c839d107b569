package launch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
	"crisp/runtime/plan"
	"crisp/runtime/resctrl"
)

// ungrouped is a group that has no files.
type ungrouped struct{}

func (ungrouped) Entry() (*cgroup.Entry, error)      { return &cgroup.Entry{}, nil }
func (ungrouped) EntryOf(int) (*cgroup.Entry, error) { return &cgroup.Entry{}, nil }
func (ungrouped) NeedsGate() bool                    { return false }
func (ungrouped) Attach(context.Context, int) error  { return nil }

// TestClass starts a container and a command in a class of Intel RDT, which both join
// before they execute.
func TestClass(t *testing.T) {
	for name, make := range labs() {
		t.Run(name, func(t *testing.T) {
			b := make(t)
			dir := t.TempDir()
			for _, at := range []string{"gold", "gold/mon_groups/test"} {
				must(t, os.MkdirAll(filepath.Join(dir, at), 0o700))
				must(t, os.WriteFile(filepath.Join(dir, at, "tasks"), nil, 0o600))
			}
			joined := func() string {
				var all string
				for _, at := range []string{"gold", "gold/mon_groups/test"} {
					data, err := os.ReadFile(filepath.Join(dir, at, "tasks"))
					must(t, err)
					must(t, os.Truncate(filepath.Join(dir, at, "tasks"), 0))
					all += string(data)
				}
				return all
			}

			s := b.spec("exec sleep 100")
			if b.pod["ns/pid"] != nil {
				setNamespace(s, specs.PIDNamespace, "ns/pid")
			}
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold", EnableMonitoring: true}
			if _, err := b.start(s, nil, Request{}); !errors.Is(err, plan.ErrUnsupported) {
				t.Errorf("without a class: %v, want %v", err, plan.ErrUnsupported)
			}

			group := Class{FS: resctrl.At(dir), ID: "test", Spec: s.Linux.IntelRdt}.With(ungrouped{})
			c, err := b.start(s, nil, Request{Group: group, Classed: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.kill()
			if got := joined(); got != "00" {
				t.Errorf("the container wrote %q to the tasks, want 0 to each", got)
			}
			p := *s.Process
			p.Args = []string{"/bin/true"}
			e, err := b.exec(c, s, &p, Request{Group: group, Member: c.Pid})
			if err != nil {
				t.Fatal(err)
			}
			e.wait()
			if got := joined(); got != "00" {
				t.Errorf("a command wrote %q to the tasks, want 0 to each", got)
			}
		})
	}
}
