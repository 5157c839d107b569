//go:build crash

package crash

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"crisp/cri/pod"
)

// An odd number takes cases of both kinds of kills, which alternate.
var every = flag.Int("every", 1, "of the cases of TestCrash try only each `n`th")

// Ways to disturb an operation.
const (
	kill           = "kill"
	killBoth       = "kill with keeper"
	fail           = "error"
	killInRollback = "kill in rollback"
	failInRollback = "error in rollback"
	killInRecovery = "kill in recovery"
	failInRecovery = "error in recovery"
)

// attempt is one case: orders for the call, and for the restart that follows if
// the call kills the daemon.
type attempt struct {
	way       string
	at        point
	orders    []order
	afterward []order
}

// kindOf is the kind of the order for a way that needs but one.
func kindOf(way string) string {
	if way == fail {
		return "fail"
	}
	return "kill"
}

func (a attempt) String() string { return a.way + " " + a.at.String() }

func TestCrash(t *testing.T) {
	n := newNode(t)
	var score score
	var all []point
	found := 0
	for _, op := range operations {
		if op.name == "ExecSync" {
			continue // it has no failpoint; see TestMoments
		}
		t.Run(op.name, func(t *testing.T) {
			n.needs(t, op)
			for _, a := range n.attempts(t, op) {
				if found++; found%*every > 0 {
					continue
				}
				all = append(all, a.at)
				passed := t.Run(a.String(), func(t *testing.T) { n.attempt(t, op, a) })
				score.add(op.name, a.way, passed)
			}
		})
	}

	if !partial() {
		wantAllSteps(t, all)
	}
	score.publish(t, "crashes at every failpoint")
}

// wantAllSteps checks that each step's do and undo has been disturbed.
func wantAllSteps(t *testing.T, all []point) {
	t.Helper()
	sandbox, container := pod.Tables()
	want := func(name string) {
		if !slices.ContainsFunc(all, func(p point) bool { return p.name == name }) {
			t.Errorf("no case %s", name)
		}
	}
	for _, step := range slices.Concat(sandbox, container) {
		for _, what := range []string{"before do ", "after do ", "before undo ", "after undo "} {
			want(what + step)
		}
	}

	for _, k := range hookKinds {
		want("before " + k + " hook")
		want("after " + k + " hook")
	}
}

// attempts finds the failpoints that an operation hits, and lists the cases.
func (n *node) attempts(t *testing.T, op operation) []attempt {
	t.Helper()
	return n.attemptsAt(t, op, func(point) bool { return true }, "after do ")
}

// attemptsAt lists the cases at some failpoints. The last one whose name begins with
// deepest is that at which there is most to undo.
func (n *node) attemptsAt(t *testing.T, op operation, wanted func(point) bool, deepest string) []attempt {
	t.Helper()
	explore := func(orders ...order) []point {
		return slices.DeleteFunc(n.explore(t, op, orders...), func(p point) bool { return !wanted(p) })
	}
	var all []attempt
	points := explore()
	for _, p := range moments(points) {
		all = append(all,
			attempt{kill, p, []order{{"kill", p}}, nil},
			attempt{killBoth, p, []order{{"kill", p}}, nil})
	}

	for _, p := range points {
		all = append(all, attempt{fail, p, []order{{"fail", p}}, nil})
	}
	last := lastOf(points, deepest)
	if last.n == 0 {
		return all
	}

	undo := order{"fail", last}
	for _, p := range explore(undo) {
		if !slices.Contains(points, p) {
			all = append(all,
				attempt{killInRollback, p, []order{undo, {"kill", p}}, nil},
				attempt{failInRollback, p, []order{undo, {"fail", p}}, nil})
		}
	}

	end := order{"kill", last}
	for _, p := range explore(end) {
		all = append(all,
			attempt{killInRecovery, p, []order{end}, []order{{"kill", p}}},
			attempt{failInRecovery, p, []order{end}, []order{{"fail", p}}})
	}

	return all
}

// moments leaves out failpoints that are equivalent for a kill, since nothing
// happens between them. Those of steps are preferred to those of records.
func moments(points []point) []point {
	var all []point
	for _, p := range points {
		if last := len(all) - 1; last >= 0 && strings.HasPrefix(all[last].name, "after ") && strings.HasPrefix(p.name, "before ") {
			switch {
			case strings.HasSuffix(p.name, " record"):
				continue
			case strings.HasSuffix(all[last].name, " record"):
				all = all[:last]
			}
		}
		all = append(all, p)
	}
	return all
}

// lastOf returns the last failpoint whose name begins with a text.
func lastOf(points []point, prefix string) point {
	var last point
	for _, p := range points {
		if strings.HasPrefix(p.name, prefix) {
			last = p
		}
	}
	return last
}

// explore runs an operation and returns the failpoints that it hits. If the orders
// kill the daemon, it returns those of the recovery.
func (n *node) explore(t *testing.T, op operation, orders ...order) []point {
	t.Helper()
	s := n.newScene(t)
	for _, f := range op.prepare {
		f(s)
	}

	n.give(t, orders...)
	err := op.call(s)
	if (err == nil) != (len(orders) == 0) || !n.obeyed(t) {
		t.Fatalf("with orders %v the call: %v", orders, err)
	}
	if len(orders) > 0 && orders[0].kind == "kill" {
		n.Kill()
		n.give(t)
		n.begin(t)
	}

	points := n.hits(t)
	s.removeAll()
	return points
}

// attempt runs one case.
func (n *node) attempt(t *testing.T, op operation, a attempt) {
	s := n.newScene(t)
	defer n.wantHooks(t, a)
	defer n.tidy(t, s)
	for _, f := range op.prepare {
		f(s)
	}

	before := n.belongings(t)
	n.give(t, a.orders...)
	err := op.call(s)
	if !n.obeyed(t) {
		t.Fatalf("the daemon did not execute %v; the call: %v", a.orders, err)
	}

	restart := a.orders[len(a.orders)-1].kind == "kill"
	if err == nil && restart {
		t.Error("the call succeeded, but the daemon should have been killed")
	}

	if a.way == killBoth {
		n.killKeeper(t)
	}
	if restart {
		n.restart(t, a.afterward)
	}

	n.give(t)
	s.wantListed()
	if a.way == killBoth {
		return // the pod can only be removed
	}

	if created := op.heal != nil && op.skip == nil; created && err != nil && len(s.pods()) == len(op.prepare) && len(s.containers()) == 0 {
		n.wantNoMore(t, "after the call", before, "descriptor of the daemon")
	}
	if op.heal != nil {
		op.heal(s)
	}
	if op.skip == nil || !op.skip(s) {
		s.must("retry", op.call(s))
	}
	op.done(s)
}

// restart restarts the killed daemon, with orders for its recovery.
func (n *node) restart(t *testing.T, orders []order) {
	t.Helper()
	n.Kill() // only waits
	n.give(t, orders...)
	err := n.Start(t.Context())

	if !n.obeyed(t) {
		t.Errorf("the daemon did not execute %v at its start", orders)
	}
	if len(orders) > 0 && orders[0].kind == "kill" {
		if err == nil {
			t.Error("the daemon started, but should have been killed")
		}
		n.give(t)
		err = n.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tidy ends a case: all pods can be removed, and then nothing has leaked.
func (n *node) tidy(t *testing.T, s *scene) {
	t.Helper()
	n.give(t)
	if !n.responds(t) {
		n.Kill()
		n.begin(t)
	}
	s.removeAll()
	n.wantNoMore(t, "after everything was removed", n.usual)
	if t.Failed() {
		n.usual = append(n.usual, n.belongings(t)...) // so that the next case starts clean
	}
}
