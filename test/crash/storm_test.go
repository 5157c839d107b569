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

var stormTime = flag.Duration("storm", 40*time.Second, "how long calls are made all at once")

// Sizes of the storm.
const (
	stormClients = 6
	stormPods    = 4
	stormRound   = 2 * time.Second
)

// storm is calls of several clients for the same few pods, without any order.
type storm struct {
	n    *node
	t    *testing.T
	pods []*modelPod
	// busy counts the calls under way for each pod.
	busy             [stormPods]atomic.Int32
	calls, meetings  atomic.Int64
	givenUp, refused atomic.Int64
	// wounded says that something is killed in this round.
	wounded bool
}

// TestStorm makes opposite and equal calls at once, gives some up at random
// moments, kills the daemon and the keeper under them, and looks after each
// round whether what is listed makes sense. What a call may answer is open
// then; that it answers with a chosen code is not.
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
		st.wounded = rounds%3 == 2
		if st.wounded {
			kills++
		}
		st.round(random)
		st.settle()
		s.wantListed()
		st.wantSense(s)
	}

	n.tidy(t, s)
	n.wantNoImage(t)
	survived := "yes"
	if t.Failed() {
		survived = "no"
	}

	publish(t, "calls at once", fmt.Sprintf(`| calls | of these while another for the same pod was under way | given up | refused by the rules | rounds | with a kill | survived |
| --- | --- | --- | --- | --- | --- | --- |
| %d | %d | %d | %d | %d | %d | %s |
`, st.calls.Load(), st.meetings.Load(), st.givenUp.Load(), st.refused.Load(), rounds, kills, survived))
}

// round lets the clients loose for a while.
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

	if st.wounded {
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

// settle waits for what goes on of calls that were given up: a pod that is being
// made has a directory and is not listed yet.
func (st *storm) settle() {
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

	if random.IntN(3) == 0 { // so that there is something to fight for
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
		st.meetings.Add(1)
	}

	_, err := a.call(ctx)
	st.busy[i].Add(-1)
	st.calls.Add(1)
	switch code := status.Code(err); {
	case code == codes.OK:
	case code == codes.DeadlineExceeded && short:
		st.givenUp.Add(1)
	case slices.Contains([]codes.Code{codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists}, code):
		st.refused.Add(1)
	case code == codes.Unavailable && st.wounded:
	default:
		st.t.Errorf("%s: %v", a.name, err)
	}
}

// present is a pod with the ids that are listed under its names.
func (st *storm) present(i int) *modelPod {
	p := *st.pods[i]
	ctx, cancel := context.WithTimeout(context.WithoutCancel(st.t.Context()), callTime)
	defer cancel()
	pods, err := st.n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return &p // the daemon is away
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

// wantSense wants no name twice, and what is listed to do what its state says.
func (st *storm) wantSense(s *scene) {
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
			continue // a call that was given up goes on
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
