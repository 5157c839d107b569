//go:build crash

package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
)

var stormTime = flag.Duration("storm", 40*time.Second, "how long concurrent random calls are made")

// Sizes of the storm.
const (
	stormClients = 6
	stormPods    = 4
	stormRound   = 2 * time.Second
)

// storm is several clients that make random calls for the same few pods.
type storm struct {
	n    *node
	t    *testing.T
	pods []*modelPod
	// busy counts the calls in progress for each pod.
	busy               [stormPods]atomic.Int32
	calls, overlaps    atomic.Int64
	cancelled, refused atomic.Int64
	// killing means that daemon or keeper is killed in this round.
	killing bool
}

// TestStorm makes conflicting and equal calls concurrently, cancels some at random
// moments, kills the daemon and the keeper meanwhile, and checks after each round
// that what is listed is consistent. Which result a call has is open; that it
// returns one of the documented codes is not.
func TestStorm(t *testing.T) {
	n := newNode(t, untraced)
	t.Logf("-seed %d", *seed)
	st := &storm{n: n, t: t, pods: n.modelPods(t, stormPods)}
	for i, p := range st.pods {
		if i > 0 { // one has a network
			s := &scene{pod: p.cfg, container: p.containers[0].cfg}
			kinds[2].change(s)
			for j := range p.containers {
				p.containers[j].cfg.Linux.SecurityContext.NamespaceOptions = s.container.Linux.SecurityContext.NamespaceOptions
				p.containers[j].cfg.Tty, p.containers[j].cfg.Stdin = false, false
			}
		}
	}

	random := rand.New(rand.NewPCG(*seed, 3))
	s := n.newScene(t)
	rounds, kills := 0, 0
	for end := time.Now().Add(*stormTime); time.Now().Before(end) && !t.Failed(); rounds++ {
		st.killing = rounds%3 == 2
		if st.killing {
			kills++
		}
		st.round(random)
		st.quiesce()
		s.wantListed()
		st.wantConsistent(s)
	}

	n.tidy(t, s)
	n.wantNoImage(t)
	passed := "yes"
	if t.Failed() {
		passed = "no"
	}

	publish(t, "concurrent random calls", fmt.Sprintf(`| calls | overlapping another for the same pod | cancelled | refused by the rules | rounds | with a kill | passed |
| --- | --- | --- | --- | --- | --- | --- |
| %d | %d | %d | %d | %d | %d | %s |
`, st.calls.Load(), st.overlaps.Load(), st.cancelled.Load(), st.refused.Load(), rounds, kills, passed))
}

// round lets the clients run for a while.
func (st *storm) round(random *rand.Rand) {
	end := time.Now().Add(stormRound)
	var clients sync.WaitGroup
	for range stormClients {
		own := rand.New(rand.NewPCG(random.Uint64(), random.Uint64()))
		clients.Go(func() {
			for time.Now().Before(end) {
				st.call(own)
			}
		})
	}

	if st.killing {
		time.Sleep(time.Duration(random.IntN(int(stormRound))))
		killed := 0
		if random.IntN(2) == 0 {
			killed = st.n.killKeeper(st.t)
		} else {
			st.n.Kill()
			st.n.begin(st.t)
		}
		st.n.awaitKeeper(st.t, killed)
	}
	clients.Wait()
}

// quiesce waits for the operations of cancelled calls, which continue: a pod that
// is being created has a directory but is not listed yet.
func (st *storm) quiesce() {
	st.t.Helper()
	for end := time.Now().Add(callTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		listed := call(st.t, st.n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items
		if len(listed) == len(inventory.Names(filepath.Join(st.n.Dir, "root/pods"))) {
			time.Sleep(100 * time.Millisecond) // for stops and removals
			return
		}
	}
}

// call makes a random call for a random pod.
func (st *storm) call(random *rand.Rand) {
	i, j := random.IntN(stormPods), random.IntN(modelContainers)
	p := st.present(i)
	all := st.n.actions(p, &p.containers[j])
	a := all[random.IntN(len(all))]

	if random.IntN(3) == 0 { // so that there is something to conflict over
		a = all[random.IntN(3)]
	}

	limit := callTime
	short := random.IntN(4) == 0
	if short {
		limit = time.Duration(random.IntN(20000)) * time.Microsecond
	}

	ctx, cancel := context.WithTimeout(context.WithoutCancel(st.t.Context()), limit)
	defer cancel()
	if st.busy[i].Add(1) > 1 {
		st.overlaps.Add(1)
	}

	_, err := a.call(ctx)
	st.busy[i].Add(-1)
	st.calls.Add(1)
	switch code := status.Code(err); {
	case code == codes.OK:
	case code == codes.DeadlineExceeded && short:
		st.cancelled.Add(1)
	case slices.Contains([]codes.Code{codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists}, code):
		st.refused.Add(1)
	case code == codes.Unavailable && st.killing:
	default:
		st.t.Errorf("%s: %v", a.name, err)
	}
}

// present returns a pod with the IDs that are listed under its names.
func (st *storm) present(i int) *modelPod {
	p := *st.pods[i]
	ctx, cancel := context.WithTimeout(context.WithoutCancel(st.t.Context()), callTime)
	defer cancel()
	pods, err := st.n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return &p // the daemon is down
	}

	for _, listed := range pods.Items {
		if listed.Metadata.Name == p.cfg.Metadata.Name {
			p.id = listed.Id
		}
	}

	containers, err := st.n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: orNone(p.id)}})
	if err != nil {
		return &p
	}

	for _, listed := range containers.Containers {
		for j := range p.containers {
			if p.containers[j].cfg.Metadata.Name == listed.Metadata.Name {
				p.containers[j].id = listed.Id
			}
		}
	}

	return &p
}

// wantConsistent checks that no name is listed twice, and that the listed states
// are true.
func (st *storm) wantConsistent(s *scene) {
	st.t.Helper()
	var names []string
	ready := map[string]bool{}
	for _, p := range s.pods() {
		names = append(names, p.Metadata.Name)
		ready[p.Id] = p.State == runtimeapi.PodSandboxState_SANDBOX_READY
	}

	for _, c := range s.containers() {
		names = append(names, c.PodSandboxId+"/"+c.Metadata.Name)
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if !ready[c.PodSandboxId] {
			st.t.Errorf("container %s runs in a pod that is not ready", c.Id)
			continue
		}

		r, err := try(st.t, st.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.Id, Cmd: []string{"echo", "well"}})
		if code := status.Code(err); code == codes.NotFound || code == codes.FailedPrecondition {
			continue // the operation of a cancelled call continues
		}
		if err != nil || string(r.Stdout) != "well\n" {
			st.t.Errorf("a command in container %s printed %q: %v", c.Id, r.GetStdout(), err)
		}
	}

	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		st.t.Errorf("a name is listed twice: %s", strings.Join(names, ", "))
	}
}
