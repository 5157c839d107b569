//go:build crash

package crash

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/fuse"
)

// usualReads is how long reads are measured without a fault.
const usualReads = 4 * time.Second

// undying are containers with a process in uninterruptible sleep.
var undying = []struct {
	name, script string
}{
	{"first process", "exec cat /dead/file"},
	{"child", "cat /dead/file"},
	{"orphan", "(cat /dead/file &) ; sleep 1000"},
}

// delays are the latencies of reads without and with an unkillable container.
type delays struct{ without, with latency }

// TestFaultUndying stops containers that cannot be killed.
func TestFaultUndying(t *testing.T) {
	n := newNode(t)
	table := "| unkillable process | disturbance | reads without it | p50 ms | p99 ms | reads with it | p50 ms | p99 ms | passed |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
	try := func(name, way string, test func(t *testing.T) delays) {
		var d delays
		passed := "no"
		if t.Run(name+"/"+way, func(t *testing.T) { d = test(t) }) {
			passed = "yes"
		}
		table += fmt.Sprintf("| %s | %s | %v | %v | %s |\n", name, way, d.without, d.with, passed)
	}

	for _, u := range undying {
		for _, way := range []string{"stopped", "daemon killed", "daemon and keeper killed"} {
			if u.name == "child" && way != "stopped" {
				continue // the others cover it
			}
			try(u.name, way, func(t *testing.T) delays { return n.undying(t, u.script, way) })
		}
	}

	for _, way := range []string{"stopped", "daemon killed", "daemon and keeper killed"} {
		try("frozen", way, func(t *testing.T) delays { return n.frozen(t, way) })
	}
	if !partial() {
		publish(t, "containers that cannot be killed", table)
	}
}

func (n *node) undying(t *testing.T, script, way string) (d delays) {
	s := n.newScene(t)
	dir := t.TempDir()
	file := fuse.NewSilent()
	f := fuse.Serve(t, dir, file)
	defer n.tidy(t, s)
	defer f.End()

	kinds[2].change(s) // without a network, which does not matter here
	s.container.Tty, s.container.Stdin = false, false
	s.container.Command = []string{"sh", "-c", script}
	s.container.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/dead"}}
	s.run()
	s.create()
	d.without = n.readFor(t, usualReads)
	s.start()

	select {
	case <-file.Asked:
	case <-time.After(callTime):
		t.Fatal("the file was not opened")
	}

	n.endHolders(t, way)
	read := n.reads(t)
	if way == "stopped" {
		begin := time.Now()
		wantError(t, s.tryStop(), "could not be killed", codes.DeadlineExceeded)
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("the stop took %v", took)
		}
	}

	wantError(t, s.tryStopPod(), "could not be killed", codes.DeadlineExceeded)
	d.with = read.end()
	n.otherPod(t)
	if read.err != nil || d.with.p99 > d.without.p99+quick {
		t.Errorf("p99 of reads is %v without and %v with it: %v", d.without.p99, d.with.p99, read.err)
	}

	f.End()
	s.must("stop pod", s.tryStopPod())
	s.wantContainer(runtimeapi.ContainerState_CONTAINER_EXITED)
	s.must("remove pod", s.tryRemovePod())
	return d
}

// endHolders kills the daemon, or daemon and keeper, as way says.
func (n *node) endHolders(t *testing.T, way string) {
	t.Helper()
	if way == "stopped" {
		return
	}
	n.Kill()
	if way == "daemon and keeper killed" {
		n.killKeeper(t)
	}
	begin := time.Now()
	n.begin(t)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the daemon took %v to start", took)
	}
}

// otherPod runs and removes another pod.
func (n *node) otherPod(t *testing.T) {
	t.Helper()
	s := n.newScene(t)
	kinds[2].change(s)
	s.pod.Metadata.Name = "other"

	begin := time.Now()
	s.run()
	s.create()
	s.start()
	s.must("stop other container", s.tryStop())
	s.must("stop other pod", s.tryStopPod())
	s.must("remove other pod", s.tryRemovePod())

	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("another pod took %v", took)
	}
}

// frozen stops a container that was frozen from outside.
func (n *node) frozen(t *testing.T, way string) (d delays) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	kinds[2].change(s)
	s.run()
	s.create()
	s.start()
	d.without = n.readFor(t, usualReads)
	s.freeze("FROZEN")
	n.endHolders(t, way)
	d.with = n.readFor(t, usualReads)

	begin := time.Now()
	s.must("stop", s.tryStop())
	s.must("stop pod", s.tryStopPod())
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the stop took %v", took)
	}

	s.wantContainer(runtimeapi.ContainerState_CONTAINER_EXITED)
	s.must("remove pod", s.tryRemovePod())
	return d
}
