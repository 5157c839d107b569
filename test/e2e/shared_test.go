package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
)

// TestShared has containers that share memory, or files in it.
func TestShared(t *testing.T) {
	n := withCRIU(t, "")
	n.run(t, "clones", func(t *testing.T) { testSharedClones(t, n) })
	n.run(t, "archive", func(t *testing.T) { testSharedArchive(t, n) })
	n.run(t, "file without a name", func(t *testing.T) { testSharedNameless(t, n) })
	n.run(t, "no room", func(t *testing.T) { testSharedTooLarge(t, n) })
	n.run(t, "sockets", func(t *testing.T) { testSharedSockets(t, n) })
}

// held starts containers that each hold something, in order.
func (p *pod) held(t *testing.T, dir string, names ...string) (list []*container) {
	t.Helper()
	for i, name := range names {
		c := p.start(t, named("c"+string(rune('a'+i))), holding(t, name, dir))
		eventually(t, name+" is held", func() bool { return c.logged(t) == "held\n" })
		list = append(list, c)
	}
	return list
}

// heldIn is a volume for what containers hold.
func heldIn(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// askHeld asks containers whether they still have what they held.
func askHeld(t *testing.T, dir string, list ...*container) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "on"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		var out string
		eventually(t, c.cfg.Metadata.Name+" answers", func() bool { out = c.logged(t); return out != "" && out != "held\n" })
		if out != "kept\n" && out != "held\nkept\n" {
			t.Errorf("container %s of pod %s: %s", c.cfg.Metadata.Name, c.p.id, out)
		}
	}
}

// twoSharing are two containers that have memory in common.
func twoSharing() []string {
	return []string{"memory shared by containers, one", "memory shared by containers, another"}
}

// testSharedClones makes pods of a snapshot: the containers of each have memory in common, and
// none with those of others.
func testSharedClones(t *testing.T, n *node) {
	dir := heldIn(t)
	p := n.pod(t, podNamed("together"))
	all := append(p.held(t, dir, twoSharing()...), p.start(t, named("semaphore"), holding(t, "semaphore", dir)))
	eventually(t, "the semaphore is held", func() bool { return all[2].logged(t) == "held\n" })
	n.snapshotted(t, "e2e/together", "together")

	all = append(all, n.clones(t, "-n", "2", "--name", "copy", "together")...)
	all[0].sh(t, "echo here >/dev/shm/here")
	for _, c := range all[3:] {
		c.sh(t, "! test -e /dev/shm/here")
	}
	askHeld(t, dir, all...)
	n.crisp(t, "snapshots", "rm", "together")
}

// testSharedArchive restores one container, in a pod where nobody has its files, and in its
// own, where another has.
func testSharedArchive(t *testing.T, n *node) {
	dir := heldIn(t)
	p := n.pod(t)
	c := p.held(t, dir, "shared memory object")[0]
	c.sh(t, "echo old >/dev/shm/other")
	file := filepath.Join(t.TempDir(), "a.tar")
	call(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file})
	n.readable(t, file)

	beside := p.create(t, named("beside"), holding(t, "shared memory object", dir), image(file))
	_, err := try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: beside.id})
	wantCode(t, err, codes.FailedPrecondition, "another file of that name")

	q := n.pod(t)
	other := q.start(t, named("other"), sh("echo new >/dev/shm/other; sleep 1000"))
	eventually(t, "the file is there", func() bool { return other.sh(t, "cat /dev/shm/other || true") == "new" })
	d := q.start(t, holding(t, "shared memory object", dir), image(file))
	if got := d.sh(t, "cat /dev/shm/other"); got != "new" {
		t.Errorf("another container's file is %q", got)
	}
	askHeld(t, dir, c, d)
	p.remove(t)
	q.remove(t)
}

// testSharedNameless has two containers with a file in common that has no name: it cannot be
// saved as one, and they go on.
func testSharedNameless(t *testing.T, n *node) {
	dir := heldIn(t)
	p := n.pod(t)
	list := p.held(t, dir, twoSharing()...)
	list[0].sh(t, "rm /dev/shm/together")
	r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: t.TempDir(), ContainerIds: []string{list[0].id, list[1].id}}
	_, err := try(t, n.Runtime.CheckpointPod, r)
	wantCode(t, err, codes.FailedPrecondition, "containers ca and cb share a file")
	if left, err := os.ReadDir(r.OutputPath); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	askHeld(t, dir, list...)
	p.remove(t)
}

// testSharedTooLarge restores a pod into one with a smaller /dev/shm.
func testSharedTooLarge(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh("dd if=/dev/zero of=/dev/shm/large bs=1M count=2 2>/dev/null; "+counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 0 })
	r := p.again(t, p.save(t, c), c)
	p.remove(t)

	small := proto.CloneOf(r)
	small.Config.Annotations = map[string]string{spec.ShmSizeAnnotation: "1Mi"}
	_, err := try(t, n.Runtime.RestorePod, small)
	wantCode(t, err, codes.ResourceExhausted, "large")
	if left := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	q, restored := n.restore(t, r)
	restored[0].start(t)
	restored[0].sh(t, "test $(stat -c %s /dev/shm/large) = 2097152")
	q.remove(t)
}

// testSharedSockets has one container connected to another, by a socket in a volume: that is
// said of either, and they go on. Without a connection the socket is there again after a restore.
func testSharedSockets(t *testing.T, n *node) {
	dir := heldIn(t)
	p := n.pod(t, podNamed("sockets"))
	list := p.held(t, dir, "Unix socket for others", "Unix socket of others")
	for i, other := range []string{"cb", "ca"} {
		r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: t.TempDir(), ContainerIds: []string{list[i].id}}
		_, err := try(t, n.Runtime.CheckpointPod, r)
		wantCode(t, err, codes.FailedPrecondition, "connected to container "+other+" by the Unix socket /go/server")
	}
	askHeld(t, dir, list...)
	p.remove(t)

	dir = heldIn(t)
	p = n.pod(t, loggingTo(t.TempDir()))
	list = p.held(t, dir, "Unix socket for others")
	q, restored := n.restore(t, p.again(t, p.save(t, list...), list...))
	p.remove(t)
	restored[0].start(t)
	client := q.start(t, named("client"), holding(t, "Unix socket of others", dir))
	eventually(t, "it is connected", func() bool { return client.logged(t) == "held\n" })
	askHeld(t, dir, restored[0], client)
	q.remove(t)
}
