//go:build crash

package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestFaultNetwork makes network plugins fail in every way, at ADD and at DEL, for
// a while.
func TestFaultNetwork(t *testing.T) {
	p, with := newPlugins(t)
	// The node waits for its network add-on: without a configuration no pod runs.
	own := func(o *lab.Options) { o.Config += "\ndefault_network = false\n" }
	n := newNode(t, with, own)
	score := score{first: "network plugin"}
	try := func(fault, way string, test func(*testing.T)) {
		score.add(fault, way, t.Run(way+"/"+fault, func(t *testing.T) {
			defer p.heal()
			test(t)
		}))
	}

	faults := make([]string, 0, len(faultsOf))
	for f := range faultsOf {
		faults = append(faults, f)
	}

	slices.Sort(faults)
	for _, f := range faults {
		for _, plugin := range []string{"bridge", "portmap"} {
			if plugin == "portmap" && strings.HasPrefix(f, "hangs") {
				continue // the deadline, of the whole chain, takes long
			}
			try(f, plugin+" at ADD", func(t *testing.T) { n.faultyAdd(t, p, plugin, f) })
			try(f, plugin+" at DEL", func(t *testing.T) { n.faultyDel(t, p, plugin, f, false) })
		}
		try(f, "bridge at DEL, daemon killed", func(t *testing.T) { n.faultyDel(t, p, "bridge", f, true) })
	}

	try("binary missing", "bridge at ADD", func(t *testing.T) { n.missingPlugin(t, p, false) })
	try("binary missing", "bridge at DEL", func(t *testing.T) { n.missingPlugin(t, p, true) })
	try("configuration missing", "bridge at DEL", n.missingConf)
	try("error, and DEL fails too", "bridge at ADD", func(t *testing.T) { n.failingRollback(t, p) })
	try("hangs, caller cancels", "bridge at ADD", func(t *testing.T) { n.impatientCaller(t, p) })
	score.publish(t, "network plugins")
}

// harmless are the commands at which a fault does not affect a pod.
var harmless = map[string][]string{
	"leaves a child process": {"ADD", "DEL"},
	"unbounded stderr":       {"ADD", "DEL"},
	"invalid output":         {"DEL"},
	"empty output":           {"DEL"},
	"no address in output":   {"DEL"},
	"unbounded stdout":       {"DEL"},
}

// faultyAdd checks that a pod fails by the deadline without leaks, and that the
// next attempt succeeds.
func (n *node) faultyAdd(t *testing.T, p *plugins, plugin, fault string) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	defer p.heal()
	before := n.belongings(t)
	p.set(t, plugin, "ADD", fault)

	read := n.reads(t)
	err := s.tryRun()
	read.wantQuick(t)
	if slices.Contains(harmless[fault], "ADD") {
		s.must("run pod", err)
	} else if err == nil {
		t.Errorf("the pod runs despite the plugin's fault %q", fault)
	} else {
		wantError(t, err, "attach network", codes.Internal, codes.Unavailable, codes.DeadlineExceeded)
		n.wantNoMore(t, "after the failure", before, "descriptor of the daemon", "link", "rule")
	}

	p.heal()
	if err != nil {
		s.run()
	}
	s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
}

// faultyDel checks that Stop fails by its deadline for as long as the plugin does.
func (n *node) faultyDel(t *testing.T, p *plugins, plugin, fault string, restart bool) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	defer p.heal()
	s.run()

	if fault == "error" {
		fault = "error times 3"
	}
	p.set(t, plugin, "DEL", fault)
	if slices.Contains(harmless[fault], "DEL") {
		s.must("stop pod", s.tryStopPod())
		return
	}

	for i := range 2 {
		read := n.reads(t)
		err := s.tryStopPod()
		read.wantQuick(t)
		wantError(t, err, plugin, codes.Internal, codes.Unavailable, codes.DeadlineExceeded)
		s.wantStuck(plugin)

		if restart && i == 0 {
			n.Kill()
			n.begin(t)
		}
	}

	if fault == "error times 3" {
		if err := s.tryRemovePod(); err == nil {
			t.Error("the pod was removed while its network is attached")
		}
	} else {
		p.heal()
	}

	s.must("stop pod", s.tryStopPod())
	if left := n.Leases(); len(left) > 0 {
		t.Errorf("addresses %q are leased after the stop", left)
	}
}

// wantStuck checks that the pod is listed as not ready, and that its status has
// the reason.
func (s *scene) wantStuck(reason string) {
	s.t.Helper()
	pods := s.pods()
	if len(pods) != 1 || pods[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		s.t.Errorf("pods are %v, want one that is not ready", pods)
		return
	}
	st := call(s.t, s.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pods[0].Id, Verbose: true})
	if text := strings.Join(values(st.Info), " "); !strings.Contains(text, reason) {
		s.t.Errorf("the status lacks the reason %q: %s", reason, text)
	}
}

func values(m map[string]string) []string {
	var all []string
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

func (n *node) missingPlugin(t *testing.T, p *plugins, later bool) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	conf := n.conf(t)

	// Under a name that exists in no other directory.
	text, err := os.ReadFile(conf)
	s.must("read configuration", err)
	other := filepath.Join(p.dir, "bridge-double")
	s.must("rename plugin", os.Symlink(filepath.Join(p.dir, "real/bridge"), other))
	s.must("configure", os.WriteFile(conf, []byte(strings.Replace(string(text), `"type": "bridge"`, `"type": "bridge-double"`, 1)), 0o644))
	defer func() {
		_ = os.Remove(other)
		_ = os.WriteFile(conf, text, 0o644)
	}()

	if later {
		s.run()
	}
	s.must("remove plugin", os.Remove(other))

	if later {
		err = s.tryStopPod()
		wantError(t, err, "bridge-double", codes.Internal, codes.Unavailable)
		s.wantStuck("bridge-double")
	} else {
		wantError(t, s.tryRun(), "bridge-double", codes.Unavailable)
		if pods := s.pods(); len(pods) > 0 {
			t.Errorf("a pod is listed although nothing was done for it: %v", pods)
		}
	}

	s.must("restore plugin", os.Symlink(filepath.Join(p.dir, "real/bridge"), other))
	if later {
		s.must("stop pod", s.tryStopPod())
		s.must("remove pod", s.tryRemovePod())
	} else {
		s.run()
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
		s.removeAll()
	}
}

// conf returns the path of the network configuration.
func (n *node) conf(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Dir, "net.d/*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("configurations: %q, %v", files, err)
	}
	return files[0]
}

func (n *node) missingConf(t *testing.T) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	s.run()
	conf := n.conf(t)
	away := filepath.Join(t.TempDir(), "away")
	s.must("move configuration", os.Rename(conf, away))

	err := s.tryStopPod()
	leases := n.Leases()
	other := n.newScene(t)
	wantError(t, other.tryRun(), "network", codes.Unavailable)
	s.must("move configuration back", os.Rename(away, conf))
	s.must("stop pod", err)

	if len(leases) > 0 {
		t.Errorf("addresses %q are leased after the stop", leases)
	}
}

// failingRollback checks that a pod whose rollback fails is listed, and that a
// retry of the call rolls it back first.
func (n *node) failingRollback(t *testing.T, p *plugins) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	defer p.heal()
	p.set(t, "bridge", "ADD", "error after its work")
	p.set(t, "bridge", "DEL", "error")
	wantError(t, s.tryRun(), "fails on request", codes.Internal, codes.Unavailable)
	s.wantStuck("fails on request")
	wantError(t, s.tryRun(), "undo the creation", codes.Internal, codes.Unavailable)
	s.wantStuck("fails on request")
	p.heal()
	s.run()
	s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
	s.removeAll()

	// A pod whose removal was requested is not rolled back by another call.
	p.set(t, "bridge", "ADD", "error after its work")
	p.set(t, "bridge", "DEL", "error")
	wantError(t, s.tryRun(), "fails on request", codes.Internal, codes.Unavailable)

	stuck := s.pods()[0].Id
	s.podID = stuck
	wantError(t, s.tryRemovePod(), "fails on request", codes.Internal, codes.Unavailable)
	wantError(t, s.tryRun(), "remove it first", codes.AlreadyExists)
	p.heal()
	s.podID = stuck
	s.must("stop pod", s.tryStopPod())
	s.must("remove pod", s.tryRemovePod())
}

// impatientCaller checks that a retried call joins the one that hangs.
func (n *node) impatientCaller(t *testing.T, p *plugins) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	defer p.heal()
	p.set(t, "bridge", "ADD", "hangs after its work")

	errs := make([]error, 3)
	ids := make([]string, 3)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			r, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: s.pod})
			ids[i], errs[i] = r.GetPodSandboxId(), err
		})
		time.Sleep(200 * time.Millisecond)
	}

	if leases := n.Leases(); len(leases) > 1 {
		t.Errorf("addresses %q are leased for one pod", leases)
	}
	wg.Wait()

	for _, err := range errs {
		wantError(t, err, "bridge", codes.DeadlineExceeded, codes.Internal)
		if err != nil && err.Error() != errs[0].Error() {
			t.Errorf("a call did not join: %v, want %v", err, errs[0])
		}
	}

	p.heal()
	s.run()
	s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
}

// wantError checks that an error has one of the codes and contains a text.
func wantError(t *testing.T, err error, text string, allowed ...codes.Code) {
	t.Helper()
	if err == nil {
		t.Errorf("the call succeeded, want an error with %q", text)
		return
	}
	if code := status.Code(err); !slices.Contains(allowed, code) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want one of the codes %v and the text %q", err, allowed, text)
	}
}

// reading measures how long lists and status take during a fault.
type reading struct {
	quit chan struct{}
	done sync.WaitGroup
	took []time.Duration
	err  error
}

// reads starts a measurement.
func (n *node) reads(t *testing.T) *reading {
	t.Helper()
	r := &reading{quit: make(chan struct{})}
	r.done.Go(func() {
		for {
			select {
			case <-r.quit:
				return
			case <-time.After(5 * time.Millisecond):
			}

			begin := time.Now()
			_, err := try(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
			if err == nil {
				_, err = try(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
			}
			if err == nil {
				_, err = try(t, n.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{})
			}
			if err == nil {
				_, err = try(t, n.Runtime.Status, &runtimeapi.StatusRequest{})
			}

			r.took = append(r.took, time.Since(begin))
			if err != nil {
				r.err = err
			}
		}
	})

	return r
}

// latency is the result of a measurement.
type latency struct {
	count    int
	p50, p99 time.Duration
}

func (l latency) String() string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%d | %.1f | %.1f", l.count, ms(l.p50), ms(l.p99))
}

// end ends the measurement.
func (r *reading) end() latency {
	close(r.quit)
	r.done.Wait()
	if len(r.took) == 0 {
		return latency{}
	}
	slices.Sort(r.took)
	return latency{len(r.took), r.took[len(r.took)/2], r.took[len(r.took)*99/100]}
}

// readFor measures for a while.
func (n *node) readFor(t *testing.T, d time.Duration) latency {
	t.Helper()
	r := n.reads(t)
	time.Sleep(d)
	return r.end()
}

// quick bounds a read on a busy machine. Waiting for a plugin, a container or a
// disk would take longer.
const quick = 2 * time.Second

func (r *reading) wantQuick(t *testing.T) {
	t.Helper()
	if took := r.end(); took.p99 > quick || r.err != nil {
		t.Errorf("lists and status took %v: %v", took.p99, r.err)
	}
}
