package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/keeper/client"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// TestKeeperUpgrade has the keeper re-execute itself as another program under
// many writers, while containers exit and a command runs.
func TestKeeperUpgrade(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "under many writers", func(t *testing.T) { testKeeperUpgraded(t, n) })
}

// keeperPrograms are the keeper's program and one that does the same.
func keeperPrograms(t *testing.T) []string {
	t.Helper()
	own := filepath.Join("..", "..", "bin", "crisp-keeper")
	data, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "crisp-keeper")
	if err := os.WriteFile(other, append(data, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{own, other}
}

func testKeeperUpgraded(t *testing.T, n *node) {
	const upgrades = 10
	count := pace.Load(50)
	w := n.startWriters(t, count)
	programs := keeperPrograms(t)
	before := n.keepers(t)
	p := n.pod(t, attempt(1))

	// The daemon has recorded that the command runs before it reports it. A
	// daemon that upgrades its keeper itself waits for starts.
	session := make(chan string, 1)
	go func() {
		r, err := try(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{
			ContainerId: w.list[1].id, Cmd: []string{"sh", "-c", "sleep 1; touch /signal/runs; sleep 2; echo through"},
		})
		session <- fmt.Sprint(string(r.GetStdout()), err)
	}()

	eventually(t, "a command runs", func() bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(w.stop), "runs"))
		return err == nil
	})

	var ending []*container
	for i := range upgrades {
		ending = append(ending, p.start(t, named("ending"+string(rune('a'+i))), sh("sleep 0.1; echo last; exit 5")))
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		replaced, err := client.Upgrade(t.Context(), n.path("state"), programs[(i+1)%2])
		if err != nil || !replaced {
			t.Fatalf("replaced %v, error %v", replaced, err)
		}
	}

	for _, c := range ending {
		c.wantEnd(t, 5, "Error")
		if got := c.logged(t); got != "last\n" {
			t.Errorf("the log says %q", got)
		}
	}

	if got := <-session; got != "through\n<nil>" {
		t.Errorf("a command that ran meanwhile says %q", got)
	}
	if after := n.keepers(t); !slices.Equal(before, after) {
		t.Errorf("the keeper is process %v, was %v", after, before)
	}

	// A daemon that has another program upgrades the keeper.
	if _, err := client.Upgrade(t.Context(), n.path("state"), programs[1]); err != nil {
		t.Fatal(err)
	}

	n.Kill()
	n.begin(t)
	if !sameProgram(t, before[0], programs[0]) {
		t.Error("a new daemon leaves the keeper as it was")
	}

	wantAttachable(t, w.list[2])
	w.end(t)
}

func sameProgram(t *testing.T, pid int, program string) bool {
	t.Helper()
	want, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(got, want)
}
