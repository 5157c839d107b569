//go:build crash

package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/cni"
	"crisp/network/netns/netnstest"
	"crisp/network/own"
	"crisp/network/own/link"
	"crisp/test/testkit/lab"
)

// ofNetwork selects the failpoints of crisp's own network.
func ofNetwork(p point) bool { return strings.Contains(p.name, " network ") }

// ownOperations are those that attach and detach a pod.
var ownOperations = []operation{{
	name: "RunPodSandbox", call: (*scene).tryRun, heal: (*scene).removeUnready,
	done: func(s *scene) {
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
		s.wantOtherAddress()
	},
}, {
	name: "StopPodSandbox", prepare: []func(*scene){(*scene).run}, call: (*scene).tryStopPod,
	done: func(s *scene) {
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
		if left := s.n.Leases(); len(left) > 0 {
			s.t.Errorf("addresses %q are leased after the stop", left)
		}
	},
}}

// wantOtherAddress runs a second pod and checks that it has an address of its own.
func (s *scene) wantOtherAddress() {
	s.t.Helper()
	other := s.n.newScene(s.t)
	other.pod.Metadata.Name, other.pod.PortMappings = "other", nil
	other.run()
	ip := func(id string) string {
		return call(s.t, s.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}).Status.Network.Ip
	}
	pods := s.pods()
	if a, b := ip(pods[0].Id), ip(pods[1].Id); len(pods) != 2 || a == b || a == "" || b == "" {
		s.t.Errorf("%d pods with the addresses %q and %q", len(pods), a, b)
	}
	s.must("stop the second pod", other.tryStopPod())
	s.must("remove the second pod", other.tryRemovePod())
}

// TestCrashOwnNetwork disturbs each step of crisp's own network at attaching and
// detaching a pod.
func TestCrashOwnNetwork(t *testing.T) {
	var score score
	for _, mode := range []string{own.ModeBridge, own.ModeRouted} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, func(o *lab.Options) { o.Own = mode })
			var all []point

			for _, op := range ownOperations {
				t.Run(op.name, func(t *testing.T) {
					for _, a := range n.attemptsAt(t, op, ofNetwork, "after network add ") {
						all = append(all, a.at)
						passed := t.Run(a.String(), func(t *testing.T) { n.attempt(t, op, a) })
						score.add(op.name+", "+mode, a.way, passed)
					}
				})
			}

			if !partial() {
				wantAllOf(t, all, "network add rules", "network add link", "network add lease", "network undo rules", "network undo link",
					"network undo lease", "network del rules", "network del link", "network del lease")
			}
		})
	}
	score.publish(t, "crashes in the own network")
}

// wantAllOf checks that all of some failpoints have been disturbed.
func wantAllOf(t *testing.T, all []point, names ...string) {
	t.Helper()
	for _, name := range names {
		for _, when := range []string{"before ", "after "} {
			if !slices.ContainsFunc(all, func(p point) bool { return p.name == when+name }) {
				t.Errorf("no case %s%s", when, name)
			}
		}
	}
}

// TestCrashOwnGC disturbs each step of collecting what a lost pod has left, while another
// pod lives.
func TestCrashOwnGC(t *testing.T) {
	var score score
	for _, mode := range []string{own.ModeBridge, own.ModeRouted} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, func(o *lab.Options) { o.Own, o.Config = mode, o.Config+"\nnetwork_sole_runtime = true\n" })
			s := n.newScene(t)
			s.run()
			alive := n.belongings(t)

			n.lose(t, "explored")
			n.restart(t, nil)
			n.wantNoMore(t, "after the lost pod was collected", alive)
			points := slices.DeleteFunc(n.hits(t), func(p point) bool { return !ofNetwork(p) })
			wantAllOf(t, points, "network collect rules", "network collect links", "network collect leases")
			for _, p := range points {
				for _, way := range []string{kill, fail} {
					a := attempt{way: way, at: p, orders: []order{{kindOf(way), p}}}
					passed := t.Run(a.String(), func(t *testing.T) { n.attemptGC(t, a, alive) })
					score.add("GC, "+mode, way, passed)
				}
			}
			s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
			s.removeAll()
			n.wantNoMore(t, "after everything was removed", n.usual)
		})
	}
	score.publish(t, "crashes in the own network's GC")
}

// attemptGC disturbs one step. The next start collects the rest.
func (n *node) attemptGC(t *testing.T, a attempt, alive []string) {
	n.lose(t, fmt.Sprint("lost", time.Now().UnixNano()))
	n.Kill()
	n.give(t, a.orders...)
	_ = n.Start(t.Context()) // it may be killed before it serves
	for end := time.Now().Add(leaveTime); !n.obeyed(t); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the daemon did not execute %v", a.orders)
		}
	}

	n.Kill()
	n.give(t)
	n.begin(t)
	n.wantNoMore(t, "after the next start", alive)
	left := n.belongings(t)
	for _, what := range alive {
		if !slices.Contains(left, what) && !strings.HasPrefix(what, "descriptor") {
			t.Errorf("%s of the living pod is gone", what)
		}
	}
}

// lose attaches a pod that the daemon has not recorded.
func (n *node) lose(t *testing.T, id string) {
	t.Helper()
	conf, err := cni.LoadFile(n.conf(t))
	if err != nil {
		t.Fatal(err)
	}
	plugins, err := conf.Plugins(own.Type)
	if err != nil || len(plugins) != 1 {
		t.Fatalf("%d plugins, %v", len(plugins), err)
	}
	config := strings.Replace(string(plugins[0]), "{", `{"runtimeConfig":{"portMappings":[{"hostPort":18081,"containerPort":80,"protocol":"tcp"}]},`, 1)
	plugin, err := own.Open(false)
	if err != nil {
		t.Fatal(err)
	}
	defer plugin.Close()

	ns := netnstest.New(t)
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
	if _, err := plugin.Call(t.Context(), own.Call{Command: "ADD", ID: id, NetNS: path, IfName: "eth0", Config: []byte(config)}); err != nil {
		t.Fatal(err)
	}
	if left := n.belongings(t); !slices.Contains(left, "link "+link.Name(id, "eth0")) || !slices.Contains(left, "element "+filepath.Base(conf.Name())+"/"+link.Name(id, "eth0")) {
		t.Fatalf("nothing is left of a lost pod: %q", left)
	}
}
