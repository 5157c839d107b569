package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// nodes are two nodes on this machine between which pods move.
type nodes struct{ from, to *node }

// twoNodes starts two nodes. The second restores what the first has saved.
func twoNodes(t *testing.T) nodes {
	t.Helper()
	from := withCRIU(t, "")
	key := strings.TrimSpace(from.crisp(t, "checkpoint", "--key", "--root", from.path("root")))
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	program, err := cache.CRIU()
	if err != nil {
		t.Fatal(err)
	}

	to := &node{testkit.Daemon(t, lab.Options{Second: true, Config: fmt.Sprintf("criu_path = %q\nrestore_from = [\"this-node\", %q]\n", program, key)})}
	to.pull(t, busybox)
	to.warm(t)
	return nodes{from, to}
}

// command is what connects to the second node.
func (n nodes) command(t *testing.T) string {
	t.Helper()
	return strings.Join(n.to.command(t, "receive").Args, " ")
}

// migrate moves a pod, which is its container's, and returns the container on the other node.
func (n nodes) migrate(t *testing.T, c *container, args ...string) *container {
	t.Helper()
	name := c.p.cfg.Metadata.Namespace + "/" + c.p.cfg.Metadata.Name
	id := strings.TrimSpace(n.from.crisp(t, append([]string{"migrate", "--command", n.command(t), name, "second"}, args...)...))
	if id == "" {
		t.Fatal("it printed no pod")
	}
	return n.arrived(t, c, id)
}

// arrived is the container of that name in a pod of the second node.
func (n nodes) arrived(t *testing.T, c *container, id string) *container {
	t.Helper()
	p := &pod{n.to, id, c.p.cfg}
	t.Cleanup(func() { p.remove(t) })
	for _, found := range call(t, n.to.Runtime.ListContainers, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}}).Containers {
		if found.Metadata.Name == c.cfg.Metadata.Name {
			return &container{p, found.Id, c.cfg}
		}
	}
	t.Fatalf("pod %s has no container %s", id, c.cfg.Metadata.Name)
	return nil
}

// loggingTo gives a pod a directory of its own for its logs.
func loggingTo(dir string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir }
}

// pods lists the pods of both nodes.
func (n nodes) pods(t *testing.T) (from, to []*runtimeapi.PodSandbox) {
	t.Helper()
	return call(t, n.from.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items, call(t, n.to.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items
}

// TestMigrate moves pods between two nodes.
func TestMigrate(t *testing.T) {
	n := twoNodes(t)
	n.from.run(t, "one container", func(t *testing.T) { testMigrate(t, n) })
	n.from.run(t, "together", func(t *testing.T) { testMigrateTogether(t, n) })
	n.from.run(t, "image", func(t *testing.T) { testMigrateImage(t, n) })
	n.from.run(t, "slow connection", func(t *testing.T) { testMigrateSlow(t, n) })
	n.from.run(t, "connection lost", func(t *testing.T) { testMigrateCut(t, n) })
	n.from.run(t, "unsettled", func(t *testing.T) { testMigrateUnsettled(t, n) })
	n.from.run(t, "daemons killed", func(t *testing.T) { testMigrateKilled(t, n) })
	n.from.run(t, "refusals", func(t *testing.T) { testMigrateRefusals(t, n) })
}

// testMigrate moves a pod, whose log both nodes write to the same file: no line is missing
// in it, and none is there twice.
func testMigrate(t *testing.T, n nodes) {
	p := n.from.pod(t, podNamed("web"))
	c := p.start(t, sh("echo kept >/tmp/file; rm /etc/group; "+counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 2 })

	began := time.Now()
	d := n.migrate(t, c)
	t.Logf("it moved in %v", time.Since(began).Round(time.Millisecond))
	from, to := n.pods(t)
	if len(from) != 0 || len(to) != 1 {
		t.Errorf("pods are %v and %v", from, to)
	}
	until := d.count(t)
	eventually(t, "it goes on", func() bool { return d.count(t) > until+2 })
	d.sh(t, "test $(cat /tmp/file) = kept && ! test -e /etc/group")
	if left, err := os.ReadDir(filepath.Join(n.to.path("root", "checkpoints"))); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	d.p.remove(t)
}

// testMigrateTogether moves two containers, one of which ends by itself on the other node. One
// that had ended before stays behind.
func testMigrateTogether(t *testing.T, n nodes) {
	dir := t.TempDir()
	p := n.from.pod(t, podNamed("web"))
	p.start(t, sh("exit 3"), named("init")).wait(t)
	a := p.start(t, sh(counting), named("a"))
	b := p.start(t, sh("while ! test -e /volume/stop; do sleep 0.05; done; exit 9"), named("b"), mount(dir, "/volume"))
	eventually(t, "it counts", func() bool { return a.count(t) > 1 })

	moved := n.migrate(t, a)
	b = n.arrived(t, b, moved.p.id)
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := b.wait(t); st.ExitCode != 9 {
		t.Errorf("it ended with %d, %s", st.ExitCode, st.Reason)
	}
	until := moved.count(t)
	eventually(t, "the other goes on", func() bool { return moved.count(t) > until+2 })
	moved.p.remove(t)
}

// testMigrateImage moves a pod whose image the other node lacks.
func testMigrateImage(t *testing.T, n nodes) {
	n.from.pull(t, nginx)
	p := n.from.pod(t, podNamed("web"))
	c := p.start(t, image(nginx), sh(counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 1 })

	d := n.migrate(t, c)
	if is, was := d.status(t).ImageId, c.cfg.Image.Image; is == "" {
		t.Errorf("it has image %q, and had %q", is, was)
	}
	until := d.count(t)
	eventually(t, "it goes on", func() bool { return d.count(t) > until+2 })
	d.p.remove(t)
	for _, node := range []*node{n.from, n.to} {
		call(t, node.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
	}
}

// throttled passes on what a command says to the second node in pieces of at most 64 KiB, each
// of which takes some processes.
const throttled = "while n=$(dd bs=64k count=1 2>/dev/null | tee /dev/fd/3 | wc -c); test $n -gt 0; do :; done 3>&1 | %s"

// testMigrateSlow moves a pod with 64 MB of memory through a slow connection. It is frozen
// only while what has changed is sent, and its memory arrives whole.
func testMigrateSlow(t *testing.T, n nodes) {
	dir := t.TempDir()
	p := n.from.pod(t, podNamed("web"))
	c := p.start(t, mount(dir, "/volume"), sh(`x=$(head -c 48000000 /dev/urandom | base64)
		i=0; while :; do i=$((i+1)); if test -e /volume/ask; then rm /volume/ask; echo "$x" | md5sum >/volume/sum; mv /volume/sum /volume/answer; fi; sleep 0.01; done`))
	sum := func() string {
		if err := os.WriteFile(filepath.Join(dir, "ask"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		answer := filepath.Join(dir, "answer")
		eventually(t, "it answers", func() bool { _, err := os.Stat(answer); return err == nil })
		defer os.Remove(answer)
		return slurp(answer)
	}
	want := sum()

	began := time.Now()
	s := finish(t, n.from.command(t, "migrate", "--verbose", "--command", fmt.Sprintf(throttled, n.command(t)), "e2e/web", "second"))
	took := time.Since(began)
	if s.code != 0 {
		t.Fatalf("it exited with %d and said %q", s.code, s.err)
	}
	t.Logf("it moved in %v: %s", took.Round(time.Millisecond), s.err)
	d := n.arrived(t, c, strings.TrimSpace(s.out))
	if got := sum(); got != want {
		t.Errorf("its memory has the sum %q, and had %q", got, want)
	}
	d.p.remove(t)

	var frozen, ahead string
	if _, err := fmt.Sscanf(s.err, "frozen for %s %s", &frozen, &ahead); err != nil {
		t.Fatalf("it said %q", s.err)
	}
	if stood, err := time.ParseDuration(strings.TrimSuffix(frozen, ";")); err != nil || stood > took/3 {
		t.Errorf("it was frozen for %v of %v, %v", stood, took, err)
	}
}

// testMigrateCut cuts the connection after so many bytes, in either direction. In the end
// the pod runs, on one of the nodes.
func testMigrateCut(t *testing.T, n nodes) {
	var stayed, moved, unsettled int
	for _, cut := range []string{
		"dd bs=1 status=none count=0 | %s", "dd bs=1 status=none count=100 | %s", "dd bs=1 status=none count=5000 | %s", "dd bs=1 status=none count=100000 | %s",
		"%s | dd bs=1 status=none count=0", "%s | dd bs=1 status=none count=10", "%s | dd bs=1 status=none count=60", "%s | dd bs=1 status=none count=120", "%s | dd bs=1 status=none count=180", "false; : %s",
	} {
		p := n.from.pod(t, podNamed("web"), loggingTo(t.TempDir()))
		c := p.start(t, sh(counting))
		eventually(t, "it counts", func() bool { return c.count(t) > 1 })
		s := finish(t, n.from.command(t, "migrate", "-t", "8s", "--settle-timeout", "0s", "--command", fmt.Sprintf(cut, n.command(t)), "e2e/web", "second"))
		if s.code != 1 {
			t.Errorf("%s: it exited with %d and said %q, %q", cut, s.code, s.out, s.err)
		}
		if strings.Contains(s.err, "frozen until") {
			unsettled++
			n.wantFrozen(t, c)
			// It stays so over a restart.
			n.from.Kill()
			if err := n.from.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			n.wantFrozen(t, c)
		}

		switch d := n.settle(t, c, s.err); {
		case d == nil:
			t.Errorf("%s: no pod", cut)
			continue
		case d.p.n == n.from:
			stayed++
			d.p.remove(t)
		default:
			moved++
			d.p.remove(t)
		}
	}
	t.Logf("%d pods stayed, %d moved, %d were unsettled in between", stayed, moved, unsettled)
	if stayed == 0 || unsettled == 0 {
		t.Errorf("%d pods stayed, %d moved, %d were unsettled in between", stayed, moved, unsettled)
	}
}

// testMigrateUnsettled has a pod handed over whose arrival was not told. Nothing is begun in
// it, only the node that it was handed to is believed, also after it has removed the pod.
func testMigrateUnsettled(t *testing.T, n nodes) {
	p := n.from.pod(t, podNamed("web"), loggingTo(t.TempDir()))
	c := p.start(t, sh(counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 1 })
	n.from.refused(t, 1, "frozen until", "migrate", "-t", "8s", "--settle-timeout", "0s", "--command", n.command(t)+" | dd bs=1 status=none count=150", "e2e/web", "second")
	n.wantFrozen(t, c)

	_, err := try(t, n.from.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: 5})
	wantCode(t, err, codes.FailedPrecondition, "handed over to second")
	more := proto.Clone(c.cfg).(*runtimeapi.ContainerConfig)
	more.Metadata.Name = "more"
	_, err = try(t, n.from.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: more, SandboxConfig: p.cfg})
	wantCode(t, err, codes.FailedPrecondition, "handed over to second")
	n.from.refused(t, 1, "handed over to second", "snapshot", "e2e/web", "frozen")

	// The first node answers for itself, and does not have it.
	other := nodes{n.from, n.from}
	n.from.refused(t, 1, "another node than this one", "migrate", "--settle-timeout", "0s", "--command", other.command(t), "e2e/web", "third")
	n.wantFrozen(t, c)

	_, to := n.pods(t)
	if len(to) != 1 {
		t.Fatalf("pods on the second node: %v", to)
	}
	gone := &pod{n.to, to[0].Id, p.cfg}
	gone.remove(t)
	if got := strings.TrimSpace(n.from.crisp(t, "migrate", "--settle", "--command", n.command(t), "e2e/web", "second")); got != gone.id {
		t.Errorf("it moved to %q, and was %s there", got, gone.id)
	}
	if from, to := n.pods(t); len(from)+len(to) > 0 {
		t.Errorf("left: %v, %v", from, to)
	}
}

// wantFrozen checks that a container does not run on the first node.
func (n nodes) wantFrozen(t *testing.T, c *container) {
	t.Helper()
	size := len(c.logged(t))
	time.Sleep(500 * time.Millisecond)
	if _, to := n.pods(t); len(to) == 0 && len(c.logged(t)) != size {
		t.Error("a pod that may run elsewhere runs")
	}
}

// settle settles a move that has failed, and returns the container wherever it runs: on one
// node alone, with no line of its log missing and none twice.
func (n nodes) settle(t *testing.T, c *container, text string) *container {
	t.Helper()
	if strings.Contains(text, "frozen until") {
		s := finish(t, n.from.command(t, "migrate", "--settle", "--command", n.command(t), "e2e/web", "second"))
		if s.code != 0 && !strings.Contains(s.err, "goes on here") {
			t.Errorf("it could not be settled: %s", s.err)
		}
	}

	var from, to []*runtimeapi.PodSandbox
	eventually(t, "one pod is left", func() bool {
		from, to = n.pods(t)
		return len(from)+len(to) == 1
	})
	if len(to) == 1 {
		c = n.arrived(t, c, to[0].Id)
	}
	until := c.count(t)
	eventually(t, "it goes on", func() bool { return c.count(t) > until+2 })
	return c
}

// testMigrateKilled kills the daemon of either node at some times while a pod moves.
func testMigrateKilled(t *testing.T, n nodes) {
	for _, node := range []*node{n.from, n.to} {
		for _, after := range []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond} {
			p := n.from.pod(t, podNamed("web"), loggingTo(t.TempDir()))
			c := p.start(t, sh(counting))
			eventually(t, "it counts", func() bool { return c.count(t) > 1 })
			cmd := n.from.command(t, "migrate", "--settle-timeout", "20s", "--command", n.command(t), "e2e/web", "second")
			ended := make(chan said, 1)
			go func() { ended <- finish(t, cmd) }()

			time.Sleep(after)
			node.Kill()
			if err := node.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := <-ended
			if d := n.settle(t, c, s.err); d != nil {
				d.p.remove(t)
			}
		}
	}
}

func testMigrateRefusals(t *testing.T, n nodes) {
	p := n.from.pod(t, podNamed("web"))
	n.from.refused(t, 1, "no container of it is running", "migrate", "--command", n.command(t), "e2e/web", "second")
	c := p.start(t, sh(counting), named("app"))
	created := p.create(t, sh("true"), named("created"))
	n.from.refused(t, 1, "created is created", "migrate", "--command", n.command(t), "e2e/web", "second")
	call(t, n.from.Runtime.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: created.id})
	n.from.refused(t, 1, "is a container", "migrate", "--command", n.command(t), "e2e/web/app", "second")
	n.from.refused(t, 6, "none", "migrate", "--command", n.command(t), "e2e/none", "second")
	n.from.refused(t, 1, "timed out", "migrate", "-t", "1s", "--command", "exec sleep 1000", "e2e/web", "second")
	n.from.refused(t, 1, "was not handed over", "migrate", "--settle", "--command", n.command(t), "e2e/web", "second")

	// The first node is none that restores what the second one has saved.
	other := nodes{n.to, n.from}
	q := n.to.pod(t, podNamed("back"))
	d := q.start(t, sh(counting))
	n.to.refused(t, 1, "nobody who is trusted", "migrate", "--command", other.command(t), "e2e/back", "first")
	d.goesOn(t)
	q.remove(t)

	c.goesOn(t)
	if _, to := n.pods(t); len(to) != 0 {
		t.Errorf("left: %v", to)
	}
}
