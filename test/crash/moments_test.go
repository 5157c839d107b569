//go:build crash

package crash

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// killKeeperOnly is a disturbance in addition to those of [attempt].
const killKeeperOnly = "kill of keeper"

// kind is a change to a scene's pod and container.
type kind struct {
	name   string
	change func(*scene)
}

var kinds = []kind{{
	"shared PID namespace, port on the node", func(*scene) {},
}, {
	"user namespace", func(s *scene) {
		mapping := []*runtimeapi.IDMapping{{HostId: 200000, ContainerId: 0, Length: 65536}}
		s.options(func(o *runtimeapi.NamespaceOption) {
			o.Pid = runtimeapi.NamespaceMode_CONTAINER
			o.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping}
		})
		s.pod.PortMappings = nil
	},
}, {
	"network of the node, terminal", func(s *scene) {
		s.options(func(o *runtimeapi.NamespaceOption) {
			o.Pid, o.Network = runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE
		})
		s.pod.PortMappings = nil
		s.container.Tty, s.container.Stdin = true, true
	},
}}

// options changes the namespaces of a scene.
func (s *scene) options(change func(*runtimeapi.NamespaceOption)) {
	o := proto.Clone(s.pod.Linux.SecurityContext.NamespaceOptions).(*runtimeapi.NamespaceOption)
	change(o)
	s.pod.Linux.SecurityContext.NamespaceOptions, s.container.Linux.SecurityContext.NamespaceOptions = o, o
}

// TestMoments kills the daemon, the keeper or both at random moments of each
// operation, also inside its steps, for several kinds of pods.
func TestMoments(t *testing.T) {
	n := newNode(t)
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 1))
	score := score{first: "kind of pod"}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for i := range *kills {
				op := operations[i%len(operations)]
				way := []string{kill, killBoth, killKeeperOnly}[i/len(operations)%3]
				// Half of them early: most operations take a few milliseconds.
				after := time.Duration(random.IntN([]int{3000, 20000}[random.IntN(2)])) * time.Microsecond
				name := fmt.Sprintf("%s %s after %v", op.name, way, after)
				score.add(k.name, way, t.Run(name, func(t *testing.T) { n.moment(t, op, k, way, after) }))
			}
		})
	}
	score.publish(t, "crashes at random moments")
}

// moment runs one case.
func (n *node) moment(t *testing.T, op operation, k kind, way string, after time.Duration) {
	s := n.newScene(t)
	s.container.Command = []string{"sh", "-c", talker}
	k.change(s)
	defer n.tidy(t, s)

	for _, f := range op.prepare {
		f(s)
	}
	n.give(t)
	var open []*session

	if s.containerID != "" && s.runs() {
		open = s.sessions()
	}
	var wg sync.WaitGroup
	var failure error
	wg.Go(func() { failure = op.call(s) })
	time.Sleep(after)

	if way != killKeeperOnly {
		n.Kill()
	}
	var killed int

	if way != kill {
		killed = n.killKeeper(t)
	}
	wg.Wait()

	if way != killKeeperOnly {
		n.begin(t)
	}
	n.awaitKeeper(t, killed)
	s.wantListed()
	s.wantSessions(open, way != killKeeperOnly)
	if way == killBoth {
		return // the pod can only be removed
	}

	if op.heal != nil {
		op.heal(s)
	}
	if failure != nil && (op.skip == nil || !op.skip(s)) {
		s.must("retry", op.call(s))
	}
	op.done(s)
}

// awaitKeeper waits until the daemon has another keeper than the killed one, and
// is ready.
func (n *node) awaitKeeper(t *testing.T, killed int) {
	t.Helper()
	for end := time.Now().Add(callTime); ; time.Sleep(5 * time.Millisecond) {
		st := call(t, n.Runtime.Status, &runtimeapi.StatusRequest{}).Status
		if pid, err := n.Keeper(); err == nil && pid != killed && st.Conditions[0].Status {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the daemon is not ready again: %v", st)
		}
	}
}
