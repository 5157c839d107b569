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

// sendTime is how long a daemon takes at most from a call to the request that
// it makes of the keeper.
const sendTime = 300 * time.Millisecond

// unanswered are the operations that have the keeper start something.
var unanswered = []operation{
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

// TestAnswer loses the keeper's answer to each kind of start. The processes are
// held at certain points, so that what is killed is at a known one:
//
//	daemon, keeper: the one that is killed
//	before it acts: the request was sent, and the keeper has not read it
//	while it acts:  the new process stands still on its way to its program
//	after it acted: the process runs, the answer is sent, and nobody has read it
func TestAnswer(t *testing.T) {
	n := newNode(t)
	var score score
	for _, op := range unanswered {
		for _, victim := range []string{"daemon", "keeper"} {
			for _, when := range []string{"before it acts", "while it acts", "after it acted"} {
				if when == "while it acts" && op.name != "StartContainer" {
					continue // nothing to hold it with
				}
				way := victim + " killed " + when
				score.add(op.name, way, t.Run(op.name+"/"+way, func(t *testing.T) { n.unanswered(t, op, victim, when) }))
			}
		}
	}
	score.publish(t, "answers that were lost")
}

func (n *node) unanswered(t *testing.T, op operation, victim, when string) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	for _, f := range op.prepare {
		f(s)
	}

	keeper, err := n.Keeper()
	s.must("find the keeper", err)
	// Whatever becomes of the test, nothing stays stopped.
	defer func() { _ = unix.Kill(keeper, unix.SIGCONT) }()

	if when == "while it acts" {
		s.freeze("FROZEN")
		defer s.freeze("THAWED")
	}

	before := len(inventory.Descendants(keeper))
	s.must("stop the keeper", unix.Kill(keeper, unix.SIGSTOP))
	answered := make(chan error, 1)
	go func() { answered <- op.call(s) }()
	time.Sleep(sendTime)

	if when != "before it acts" {
		s.must("stop the daemon", unix.Kill(n.PID(), unix.SIGSTOP))
		s.must("let the keeper go on", unix.Kill(keeper, unix.SIGCONT))
		s.await("the keeper acts", func() bool { return len(inventory.Descendants(keeper)) > before })
		time.Sleep(sendTime / 3)
	}

	var killed int
	if victim == "daemon" {
		n.Kill()
		s.must("let the keeper go on", unix.Kill(keeper, unix.SIGCONT))
		n.begin(t)
	} else {
		killed = n.killKeeper(t)
		s.must("let the daemon go on", unix.Kill(n.PID(), unix.SIGCONT))
	}

	if when == "while it acts" {
		s.freeze("THAWED")
	}
	failure := <-answered
	n.awaitKeeper(t, killed)
	s.wantListed()

	if op.name == "StartContainer" && victim == "daemon" && when == "after it acted" && !s.runs() {
		t.Errorf("listed is %v, want the container that was started to run", s.containers())
	}
	if op.heal != nil {
		op.heal(s)
	}
	if failure != nil && (op.skip == nil || !op.skip(s)) {
		s.must("try again", op.call(s))
	}

	op.done(s)
	if s.containerID != "" {
		s.wantKept()
	}
}

// wantKept wants the end of a container to be noticed, which takes a keeper
// that knows it.
func (s *scene) wantKept() {
	s.t.Helper()
	s.must("stop container", s.tryStop())
	if st := s.wantContainer(runtimeapi.ContainerState_CONTAINER_EXITED); st.ExitCode != 137 {
		s.t.Errorf("the container ended with %d (%s), want 137", st.ExitCode, st.Reason)
	}
}

// freeze freezes or thaws the container's cgroup, which a new process enters
// early.
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
		s.t.Fatal("there is nothing to freeze the container with")
	}
}

// await waits until something is so.
func (s *scene) await(what string, is func() bool) {
	s.t.Helper()
	for end := time.Now().Add(callTime); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("in vain: %s", what)
		}
	}
}
