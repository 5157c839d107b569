package inventory

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crisp/test/testkit/pace"
)

func TestMore(t *testing.T) {
	in := Inventory{shared: map[string]bool{"mount /a": true}, own: map[string]bool{"descriptor 3 x": true}}
	after := Inventory{
		shared: map[string]bool{"mount /a": true, "mount /tmp/TestX1/001/m": true, "link veth1": true},
		own:    map[string]bool{"process 7 sleep": true},
	}

	group := "cgroup " + t.TempDir()
	after.shared[group] = true
	for _, c := range []struct {
		name  string
		scope Scope
		want  []string
	}{
		{"nothing of the machine", Scope{}, []string{"process 7 sleep"}},
		{"marks", Scope{Marks: []string{"TestX1"}}, []string{"mount /tmp/TestX1/001/m", "process 7 sleep"}},
		{"own namespaces", Scope{Namespaced: true}, []string{"link veth1", "mount /tmp/TestX1/001/m", "process 7 sleep"}},
		{"not of this process", Scope{NotOwn: true, Marks: []string{"TestX1"}}, []string{"mount /tmp/TestX1/001/m"}},
		{"all", Scope{All: true}, []string{group, "link veth1", "mount /tmp/TestX1/001/m", "process 7 sleep"}},
	} {
		if got := in.more(after, c.scope); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestForeign(t *testing.T) {
	for _, c := range []struct {
		name, outer, inner string
		want               bool
	}{
		{"empty", "", "", false},
		{"of others", "1\n2\n", "", true},
		{"of others below", "", "1\n", true},
		{"ours", "7\n", "", false},
		{"ours below", "1\n", "7\n", false},
	} {
		dir := t.TempDir()
		inner := filepath.Join(dir, "inner")
		if err := errors.Join(os.Mkdir(inner, 0o755),
			os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(c.outer), 0o644),
			os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte(c.inner), 0o644)); err != nil {
			t.Fatal(err)
		}

		if got := foreign(dir, map[int]bool{7: true}); got != c.want {
			t.Errorf("%s: got %t, want %t", c.name, got, c.want)
		}
	}
	if !foreign("/no such group", nil) {
		t.Error("a group that is gone counts")
	}
}

// TestForeignLab has groups of stopped pods: no process is in them, and only
// their names tell whose they are.
func TestForeignLab(t *testing.T) {
	self, gone := os.Getpid(), 1<<30
	for _, c := range []struct {
		name string
		pid  int
		pids map[int]bool
		want bool
	}{
		{"ours", self, map[int]bool{self: true}, false},
		{"another's that runs", self, nil, true},
		{"another's that has ended", gone, nil, false},
	} {
		dir := filepath.Join(t.TempDir(), fmt.Sprintf("crisp_lab_%d_001", c.pid), "pod")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if got := foreign(dir, c.pids); got != c.want {
			t.Errorf("%s: got %t, want %t", c.name, got, c.want)
		}
	}
}

func TestOfRunningLab(t *testing.T) {
	for what, want := range map[string]bool{
		fmt.Sprintf("cgroup /sys/fs/cgroup/pids/crisp_lab_%d_001/pod", os.Getpid()): true,
		fmt.Sprintf("cgroup /sys/fs/cgroup/pids/crisp_suite_%d", os.Getpid()):       true,
		"cgroup /sys/fs/cgroup/pids/crisp_lab_1073741824_001":                       false,
		"cgroup /sys/fs/cgroup/pids/crisp":                                          false,
		fmt.Sprintf("process %d crisp", os.Getpid()):                                false,
	} {
		if got := OfRunningLab(what); got != want {
			t.Errorf("%s: got %t, want %t", what, got, want)
		}
	}
}

func TestTakeSeesDescriptorAndProcess(t *testing.T) {
	before := Take()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	left := strings.Join(before.Settle(0, Scope{}), "\n")
	if !strings.Contains(left, "/dev/null") || !strings.Contains(left, "sleep") {
		t.Errorf("want the open file and the child to be seen, got:\n%s", left)
	}

	_ = f.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if left := before.Settle(pace.Scale(20*time.Second), Scope{}); len(left) > 0 {
		t.Errorf("want nothing left, got %q", left)
	}
}

func TestTakeReapsOrphans(t *testing.T) {
	before := Take()
	if err := exec.Command("sh", "-c", "sleep 0.05 & exit 0").Run(); err != nil {
		t.Fatal(err)
	}
	if left := before.Settle(pace.Scale(20*time.Second), Scope{}); len(left) > 0 {
		t.Errorf("want the orphan gone, got %q", left)
	}
}
