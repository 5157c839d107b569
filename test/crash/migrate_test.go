//go:build crash

package crash

import (
	"errors"
	"io"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/admin"
	"crisp/cri/move"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// route is a way of a pod from one node to another.
type route struct{ from, to *node }

// TestCrashMigrate disturbs each step of moving a pod, on either node. In the end the pod runs
// on one of them.
func TestCrashMigrate(t *testing.T) {
	from := newNode(t)
	if !from.hasCRIU {
		testkit.Skip(t, "criu", "it could not be fetched")
	}
	to := newNode(t, func(o *lab.Options) { o.Second, o.Config = true, "restore_from = [\"any\"]\n"+o.Config })
	r := route{from, to}
	from.beside, to.beside = to, from
	for _, n := range []*node{from, to} {
		n.usual = append(n.usual, n.belongings(t)...) // with what the other one has
	}

	var score score
	var all []point
	for side, n := range map[string]*node{"source": from, "target": to} {
		t.Run(side, func(t *testing.T) {
			points := r.explore(t, n)
			for _, way := range []string{kill, fail} {
				list := points
				if way == kill {
					list = moments(points)
				}
				for i, p := range list {
					if i%*every > 0 {
						continue
					}
					all = append(all, p)
					a := attempt{way: way, at: p, orders: []order{{kindOf(way), p}}}
					score.add("crisp migrate, "+side, way, t.Run(a.String(), func(t *testing.T) { r.attempt(t, n, a) }))
				}
			}
		})
	}

	if !partial() && *every == 1 {
		wantAllOf(t, all, "freeze", "save", "hand over the pod", "end the moved pod", "start CRIU", "hand over", "commit a restored pod")
	}
	score.publish(t, "crashes while a pod moves")
}

// begin starts a pod on the first node.
func (r route) begin(t *testing.T) *scene {
	t.Helper()
	s := r.from.newScene(t)
	s.pod.PortMappings = nil // both nodes are on this machine
	s.ownPIDs()
	s.run()
	s.create()
	s.start()
	return s
}

// explore moves a pod undisturbed, and lists the failpoints on a node.
func (r route) explore(t *testing.T, n *node) []point {
	t.Helper()
	s := r.begin(t)
	n.give(t)
	if report, err := r.migrate(s, false); err != nil || report.Error != "" {
		t.Fatalf("the pod does not move: %+v, %v", report, err)
	}
	points := n.hits(t)
	r.wantOne(t)
	r.removeAll(t)
	return points
}

// attempt is one case.
func (r route) attempt(t *testing.T, n *node, a attempt) {
	defer r.tidy(t)
	s := r.begin(t)
	n.give(t, a.orders...)
	report, err := r.migrate(s, false)
	if !n.obeyed(t) {
		t.Fatalf("the daemon did not execute %v; the move: %+v, %v", a.orders, report, err)
	}
	if a.way == kill {
		n.restart(t, nil)
	}
	n.give(t)

	for end := time.Now().Add(pace.Scale(20 * time.Second)); err != nil || report.Unsettled; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is not settled: %+v, %v", report, err)
		}
		report, err = r.migrate(s, true)
	}
	r.wantOne(t)
}

// migrate moves the pod of a scene, as crisp migrate does.
func (r route) migrate(s *scene, settle bool) (report move.Report, err error) {
	query := url.Values{"pod": {s.podID}, "node": {"second"}, "limit": {"1m"}}
	if settle {
		query.Set("settle", "true")
	}
	source, target := r.from.admin(), r.to.admin()
	defer source.Close()
	defer target.Close()
	there, err := target.Converse(s.ctx, admin.ReceivePath)
	if err != nil {
		return report, err
	}
	defer there.Close()
	here, err := source.Converse(s.ctx, admin.MigratePath+"?"+query.Encode())
	if err != nil {
		return report, err
	}

	answered := make(chan error, 1)
	go func() {
		_, err := io.Copy(here, there)
		answered <- errors.Join(err, here.CloseWrite())
	}()
	report, err = move.Relay(here, there)
	_, _ = there.CloseWrite(), here.Close() // one may be gone
	<-answered
	return report, err
}

func (n *node) admin() *admin.Client {
	return admin.NewClient(filepath.Join(n.Dir, "state", admin.Socket))
}

// pods lists the pods of both nodes, and removes those that are not ready: their creation
// was interrupted.
func (r route) pods(t *testing.T) (from, to []*runtimeapi.PodSandbox) {
	t.Helper()
	list := func(n *node) []*runtimeapi.PodSandbox {
		s := &scene{t: t, n: n}
		s.removeUnready()
		return s.pods()
	}
	return list(r.from), list(r.to)
}

// wantOne checks that one pod runs, on one of the nodes.
func (r route) wantOne(t *testing.T) {
	t.Helper()
	from, to := r.pods(t)
	for end := time.Now().Add(pace.Scale(20 * time.Second)); len(from)+len(to) != 1; from, to = r.pods(t) {
		if time.Now().After(end) {
			t.Fatalf("pods are %v and %v", from, to)
		}
		time.Sleep(50 * time.Millisecond)
	}

	s := &scene{t: t, n: r.from}
	if len(to) == 1 {
		s.n, from = r.to, to
	}
	s.podID = from[0].Id
	for _, c := range s.containers() {
		s.containerID = c.Id
	}
	s.wantAlive()
}

func (r route) removeAll(t *testing.T) {
	t.Helper()
	for _, n := range []*node{r.from, r.to} {
		s := &scene{t: t, n: n}
		s.removePods()
	}
}

// tidy ends a case: nothing is left on either node.
func (r route) tidy(t *testing.T) {
	t.Helper()
	for _, n := range []*node{r.from, r.to} {
		n.give(t)
		if !n.responds(t) {
			n.Kill()
			n.begin(t)
		}
	}
	r.removeAll(t)
	for _, n := range []*node{r.from, r.to} {
		n.wantNoMore(t, "after everything was removed", n.usual)
		if t.Failed() {
			n.usual = append(n.usual, n.belongings(t)...)
		}
	}
}
