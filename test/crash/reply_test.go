//go:build crash

package crash

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
)

// sendTime is how long a daemon takes at most from a call to its request to the
// keeper.
const sendTime = 300 * time.Millisecond

// starting are the operations that make the keeper start a process.
var starting = []operation{
	named("RunPodSandbox"), named("StartContainer"),
	{
		name: "ExecSync", prepare: named("ExecSync").prepare, done: (*scene).wantAlive,
		call: func(s *scene) error {
			_, err := try(s.t, s.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: s.containerID, Cmd: []string{"sleep", "1"}})
			return err
		},
	},
}

func named(name string) operation {
	for _, op := range operations {
		if op.name == name {
			return op
		}
	}
	panic("no operation " + name)
}

// TestLostReply loses the keeper's reply to each kind of start. The processes are
// stopped at certain points, so that it is known how far they got:
//
//	daemon, keeper: the one that is killed
//	before start:   the request was sent, and the keeper has not read it
//	during start:   the new process is blocked before its execve
//	after start:    the process runs; the reply was sent, and has not been read
func TestLostReply(t *testing.T) {
	n := newNode(t)
	var score score
	for _, op := range starting {
		for _, victim := range []string{"daemon", "keeper"} {
			for _, when := range []string{"before start", "during start", "after start"} {
				if when == "during start" && op.name != "StartContainer" {
					continue // there is nothing to block it with
				}
				way := victim + " killed " + when
				score.add(op.name, way, t.Run(op.name+"/"+way, func(t *testing.T) { n.lostReply(t, op, victim, when) }))
			}
		}
	}
	score.publish(t, "lost replies")
}

func (n *node) lostReply(t *testing.T, op operation, victim, when string) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	for _, f := range op.prepare {
		f(s)
	}

	keeper, err := n.Keeper()
	s.must("find the keeper", err)
	// No process stays stopped, even if the test fails.
	defer func() { _ = unix.Kill(keeper, unix.SIGCONT) }()

	if when == "during start" {
		s.freeze("FROZEN")
		defer s.freeze("THAWED")
	}

	before := len(inventory.Descendants(keeper))
	s.must("stop the keeper", unix.Kill(keeper, unix.SIGSTOP))
	replied := make(chan error, 1)
	go func() { replied <- op.call(s) }()
	time.Sleep(sendTime)

	if when != "before start" {
		s.must("stop the daemon", unix.Kill(n.PID(), unix.SIGSTOP))
		s.must("continue the keeper", unix.Kill(keeper, unix.SIGCONT))
		s.await("a new process", func() bool { return len(inventory.Descendants(keeper)) > before })
		time.Sleep(sendTime / 3)
	}

	var killed int
	if victim == "daemon" {
		n.Kill()
		s.must("continue the keeper", unix.Kill(keeper, unix.SIGCONT))
		n.begin(t)
	} else {
		killed = n.killKeeper(t)
		s.must("continue the daemon", unix.Kill(n.PID(), unix.SIGCONT))
	}

	if when == "during start" {
		s.freeze("THAWED")
	}
	failure := <-replied
	n.awaitKeeper(t, killed)
	s.wantListed()

	if op.name == "StartContainer" && victim == "daemon" && when == "after start" && !s.runs() {
		t.Errorf("containers are %v, want the started one to be running", s.containers())
	}
	if op.heal != nil {
		op.heal(s)
	}
	if failure != nil && (op.skip == nil || !op.skip(s)) {
		s.must("retry", op.call(s))
	}

	op.done(s)
	if s.containerID != "" {
		s.wantKept()
	}
}

// wantKept checks that the exit of the container is noticed, which requires a
// keeper that knows it.
func (s *scene) wantKept() {
	s.t.Helper()
	s.must("stop container", s.tryStop())
	if st := s.wantContainer(runtimeapi.ContainerState_CONTAINER_EXITED); st.ExitCode != 137 {
		s.t.Errorf("the container exited with %d (%s), want 137", st.ExitCode, st.Reason)
	}
}

// freeze freezes or thaws the container's cgroup, which a new process joins early.
func (s *scene) freeze(state string) {
	s.t.Helper()
	done := false
	for _, dir := range inventory.Cgroups(s.containerID) {
		for file, value := range map[string]string{"freezer.state": state, "cgroup.freeze": map[string]string{"FROZEN": "1", "THAWED": "0"}[state]} {
			path := filepath.Join(dir, file)
			if _, err := os.Stat(path); err == nil {
				s.must("freeze", os.WriteFile(path, []byte(value), 0))
				done = true
			}
		}
	}
	if !done && state == "FROZEN" {
		s.t.Fatal("the container has no cgroup to freeze")
	}
}

// await waits until a condition holds.
func (s *scene) await(what string, is func() bool) {
	s.t.Helper()
	for end := time.Now().Add(callTime); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("timed out waiting for %s", what)
		}
	}
}
