//go:build crash

package crash

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What happens while an operation is blocked at a failpoint.
const (
	cancelled  = "cancelled"
	same       = "same call"
	removal    = "removal"
	addition   = "another container"
	keeperEnds = "keeper killed"
)

// TestConcurrent blocks each operation at each of its failpoints. Meanwhile its
// caller cancels, the same call is made again, another client removes the pod or
// creates and starts a container in it, or the keeper is killed and replaced.
// Lists and status must respond while the operation is blocked.
func TestConcurrent(t *testing.T) {
	n := newNode(t)
	var score score
	for _, op := range operations {
		if op.name == "ExecSync" {
			continue // it has no failpoint
		}
		t.Run(op.name, func(t *testing.T) {
			n.needs(t, op)
			for _, at := range moments(n.explore(t, op)) {
				for _, way := range []string{cancelled, same, removal, addition, keeperEnds} {
					passed := t.Run(way+" "+at.String(), func(t *testing.T) { n.concurrent(t, op, way, at) })
					score.add(op.name, way, passed)
				}
			}
		})
	}
	score.publish(t, "concurrent calls")
}

// ending is the result of a call.
type ending struct {
	s   *scene
	err error
}

// begin makes a call on a copy of the scene, which gets the IDs.
func (s *scene) begin(ctx context.Context, call func(*scene) error) <-chan ending {
	twin := *s
	twin.ctx = ctx
	c := make(chan ending, 1)
	go func() { c <- ending{&twin, call(&twin)} }()
	return c
}

// outcome waits for the result of a call, which must not hang.
func (s *scene) outcome(what string, c <-chan ending) ending {
	s.t.Helper()
	select {
	case a := <-c:
		return a
	case <-time.After(callTime):
		s.t.Fatalf("%s hangs", what)
		return ending{}
	}
}

// concurrent runs one case.
func (n *node) concurrent(t *testing.T, op operation, way string, at point) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	for _, f := range op.prepare {
		f(s)
	}

	n.give(t, order{"wait", at})
	defer n.release(t)
	ctx, giveUp := context.WithCancel(s.ctx)
	defer giveUp()

	first := s.begin(ctx, op.call)
	for end := time.Now().Add(callTime); !n.obeyed(t); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the operation did not reach the failpoint")
		}
	}

	s.wantResponsive()
	switch way {
	case cancelled:
		giveUp()
		if a := s.outcome("the cancelled call", first); status.Code(a.err) != codes.Canceled {
			t.Errorf("the cancelled call: %v", a.err)
		}
		s.again(op, nil)
	case same:
		s.again(op, first)
	case removal:
		s.disturb((*scene).tryEnd, first, nil)
	case addition:
		s.disturb((*scene).tryAdd, first, op.call)
	case keeperEnds:
		killed := n.killKeeper(t)
		time.Sleep(200 * time.Millisecond) // the next one is usually starting
		n.release(t)
		a := s.outcome("the call", first)
		n.awaitKeeper(t, killed)
		s.podID, s.containerID = a.s.podID, a.s.containerID
		if a.err == nil {
			op.done(s)
		} else if !slices.Contains([]codes.Code{codes.Unavailable, codes.FailedPrecondition}, status.Code(a.err)) {
			t.Errorf("the call: %v", a.err)
		}
		s.wantListed()
	}
}

// wantResponsive checks that lists and status respond while an operation is
// blocked.
func (s *scene) wantResponsive() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	pods, err := within(ctx, s.n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	s.must("list pods meanwhile", err)

	for _, p := range pods.Items {
		_, err := within(ctx, s.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
		s.must("get the status of a pod meanwhile", err)
	}

	containers, err := within(ctx, s.n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
	s.must("list containers meanwhile", err)
	for _, c := range containers.Containers {
		_, err := within(ctx, s.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		s.must("get the status of a container meanwhile", err)
	}
}

// again makes the same call while the operation is blocked. It must succeed, as
// must the first one unless it was cancelled.
func (s *scene) again(op operation, first <-chan ending) {
	s.t.Helper()
	second := s.begin(s.ctx, op.call)
	time.Sleep(20 * time.Millisecond) // so that it is usually in progress
	s.n.release(s.t)

	b := s.outcome("the second call", second)
	s.must("the same call again", b.err)
	if first != nil {
		a := s.outcome("the first call", first)
		s.must("the first call", a.err)
		if a.s.podID != b.s.podID || a.s.containerID != b.s.containerID {
			s.t.Errorf("the first call made %q and %q, the second %q and %q", a.s.podID, a.s.containerID, b.s.podID, b.s.containerID)
		}
	}

	s.podID, s.containerID = b.s.podID, b.s.containerID
	op.done(s)
}

// disturb makes another call while the operation is blocked. The CRI's rules may
// refuse both. If the first one fails and retry is not nil, retry must succeed.
func (s *scene) disturb(other func(*scene) error, first <-chan ending, retry func(*scene) error) {
	s.t.Helper()
	second := s.begin(s.ctx, other)
	time.Sleep(20 * time.Millisecond)
	s.n.release(s.t)

	a, b := s.outcome("the first call", first), s.outcome("the other call", second)
	refusals := []codes.Code{codes.OK, codes.FailedPrecondition, codes.NotFound, codes.Canceled}
	for what, err := range map[string]error{"the first call": a.err, "the other call": b.err} {
		if !slices.Contains(refusals, status.Code(err)) {
			s.t.Errorf("%s: %v", what, err)
		}
	}

	s.podID, s.containerID = a.s.podID, a.s.containerID
	if a.err != nil && retry != nil {
		s.must("make the first call again", retry(s))
	}
	s.wantListed()
}

// tryEnd stops and removes all pods.
func (s *scene) tryEnd() error {
	list, err := within(s.ctx, s.n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}

	for _, p := range list.Items {
		twin := *s
		twin.podID = p.Id
		if err := twin.tryStopPod(); err != nil {
			return err
		}
		if err := twin.tryRemovePod(); err != nil {
			return err
		}
	}

	return nil
}

// tryAdd creates and starts another container in the pod, if there is one.
func (s *scene) tryAdd() error {
	if s.podID == "" {
		return nil
	}
	twin := *s
	twin.container = proto.Clone(s.container).(*runtimeapi.ContainerConfig)
	twin.container.Metadata.Name = "late"
	twin.container.LogPath = "late.log"
	if err := twin.tryCreate(); err != nil {
		return err
	}
	return twin.tryStart()
}
