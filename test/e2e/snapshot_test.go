package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// TestSnapshots takes snapshots of a pod, and makes pods of them.
func TestSnapshots(t *testing.T) {
	n := withCRIU(t, "")
	n.run(t, "clones", func(t *testing.T) { testClones(t, n) })
	n.run(t, "clones in a user namespace", func(t *testing.T) { testClones(t, n, userNamespace(700000)) })
	n.run(t, "RestorePod", func(t *testing.T) { testRestoreSnapshot(t, n) })
	n.run(t, "warm start", func(t *testing.T) { testWarmStart(t, n) })
	n.run(t, "merged", func(t *testing.T) { testMerged(t, n) })
	n.run(t, "refusals", func(t *testing.T) { testSnapshotRefusals(t, n) })
	n.run(t, "disk", func(t *testing.T) { testSnapshotDisk(t, n) })
	n.run(t, "unfinished", func(t *testing.T) { testUnfinishedSnapshot(t, n) })
}

// snapshotted takes a snapshot.
func (n *node) snapshotted(t *testing.T, of, name string) (path string) {
	t.Helper()
	path = strings.TrimSpace(n.crisp(t, "snapshot", of, name))
	if want := n.path("root", "snapshots", name); path != want {
		t.Fatalf("it printed %q, want %q", path, want)
	}
	return path
}

// clones makes pods of a snapshot, and returns their containers.
func (n *node) clones(t *testing.T, args ...string) (list []*container) {
	t.Helper()
	for line := range strings.Lines(n.crisp(t, append([]string{"clone"}, args...)...)) {
		f := strings.Fields(line)
		if len(f) != 2 {
			t.Fatalf("it printed %q", line)
		}
		p := &pod{n: n, id: f[1]}
		t.Cleanup(func() { p.remove(t) })
		st := p.status(t)
		if st.Metadata.Name != f[0] || st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %s is %v, %v", f[0], st.Metadata, st.State)
		}
		p.cfg = &runtimeapi.PodSandboxConfig{Metadata: st.Metadata, Labels: st.Labels}

		for _, found := range call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}}).Containers {
			c := &container{p: p, id: found.Id}
			log := c.status(t).LogPath
			p.cfg.LogDirectory = filepath.Dir(log)
			c.cfg = &runtimeapi.ContainerConfig{Metadata: found.Metadata, LogPath: filepath.Base(log)}
			list = append(list, c)
		}
	}
	return list
}

// testClones makes three pods of two containers, beside the one that they are of.
func testClones(t *testing.T, n *node, change ...func(*runtimeapi.PodSandboxConfig)) {
	p := n.pod(t, append(change, podNamed("web"), func(c *runtimeapi.PodSandboxConfig) {
		c.Labels["io.kubernetes.pod.uid"], c.Labels["io.kubernetes.pod.name"] = c.Metadata.Uid, "web"
	})...)
	c := p.start(t, sh("echo kept >/tmp/file; rm /etc/group; "+counting), named("count"))
	p.start(t, sh("sleep 1000"), named("other"))
	eventually(t, "it counts", func() bool { return c.count(t) > 2 })
	n.snapshotted(t, "e2e/web", "counted")
	until := c.count(t)

	made := n.clones(t, "-n", "3", "--name", "copy", "counted")
	if len(made) != 6 {
		t.Fatalf("%d containers were made", len(made))
	}
	seen := map[string]bool{p.cfg.Metadata.Uid: true, p.status(t).Network.Ip: true}
	for _, d := range made {
		meta := d.p.cfg.Metadata
		if d.cfg.Metadata.Name == "other" {
			continue
		}
		eventually(t, "it goes on", func() bool { _, last := d.countFrom(t); return last > until+2 })
		if first, _ := d.countFrom(t); first < 2 || first > until+1 {
			t.Errorf("it goes on with %d, and the last was %d", first, until)
		}
		d.sh(t, "test $(cat /tmp/file) = kept && ! test -e /etc/group && echo new >/tmp/file")
		for _, own := range []string{meta.Uid, d.p.status(t).Network.Ip} {
			if own == "" || seen[own] {
				t.Errorf("%s has %q, which another pod has", meta.Name, own)
			}
			seen[own] = true
		}
		if l := d.p.cfg.Labels; l["io.kubernetes.pod.uid"] != meta.Uid || l["io.kubernetes.pod.name"] != meta.Name {
			t.Errorf("the labels of %s are %v", meta.Name, l)
		}
	}

	c.goesOn(t)
	if was := c.sh(t, "cat /tmp/file"); was != "kept" {
		t.Errorf("a clone changed the pod's file to %q", was)
	}
	for _, later := range n.clones(t, "counted") { // a clone's writes are not in the snapshot
		if later.cfg.Metadata.Name == "count" {
			later.sh(t, "test $(cat /tmp/file) = kept")
		}
		if got := later.p.cfg.Metadata.Name; got != "counted" {
			t.Errorf("it is called %s", got)
		}
	}
	n.crisp(t, "snapshots", "rm", "counted")
	if left, err := os.ReadDir(n.path("root", "checkpoints")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// testRestoreSnapshot restores a pod as kubelet would, of the path that the command prints.
func testRestoreSnapshot(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, sh(counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 2 })
	path := n.snapshotted(t, "e2e/web", "saved")
	until := c.count(t)
	p.remove(t)

	_, made := n.restore(t, p.again(t, path, c))
	made[0].start(t)
	eventually(t, "it goes on", func() bool { _, last := made[0].countFrom(t); return last > until })
	n.crisp(t, "snapshots", "rm", "saved")
}

// ksm is a directory of the kernel's settings for merging equal pages.
const ksm = "/sys/kernel/mm/ksm"

// setKSM changes one of these settings until the test ends.
func setKSM(t *testing.T, name, value string) {
	t.Helper()
	file := filepath.Join(ksm, name)
	was := strings.TrimSpace(slurp(file))
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, []byte(was), 0); err != nil {
			t.Error(err)
		}
	})
}

// testMerged has clones share memory until they write it.
func testMerged(t *testing.T, n *node) {
	if _, err := os.Stat(ksm); err != nil {
		testkit.Skip(t, "KSM", err.Error())
	}
	if !testkit.KernelAtLeast(t, 6, 7) {
		testkit.Skip(t, "linux 6.7", "PR_SET_MEMORY_MERGE is not inherited")
	}
	const bytes = 20 << 20
	dir := t.TempDir()
	p := n.pod(t, podNamed("big"))
	// Each pod that finds its own request answers with the sum of its memory.
	p.start(t, mount(dir, "/volume"), sh(fmt.Sprintf(`x=$(head -c %d /dev/urandom | base64); touch /volume/ready
		while :; do if test -e /tmp/ask; then rm /tmp/ask; x=${x%%?}$(cat /tmp/with); echo "$x" | md5sum >/tmp/answer; fi; sleep 0.1; done`, bytes*3/4)))
	eventually(t, "it has its memory", func() bool { _, err := os.Stat(filepath.Join(dir, "ready")); return err == nil })
	n.snapshotted(t, "e2e/big", "big")
	p.remove(t)
	setKSM(t, "run", "0")
	n.refused(t, 1, "write 1 to /sys/kernel/mm/ksm/run", "clone", "--merge", "big")

	setKSM(t, "pages_to_scan", "20000")
	setKSM(t, "run", "1")
	made := n.clones(t, "--merge", "-n", "3", "big")
	shared := func() int {
		pages, err := strconv.Atoi(strings.TrimSpace(slurp(filepath.Join(ksm, "pages_sharing"))))
		if err != nil {
			t.Fatal(err)
		}
		return pages * os.Getpagesize()
	}
	eventually(t, "two of three copies are gone", func() bool { return shared() > 2*bytes*9/10 })

	sum := func(c *container, with string) string {
		c.sh(t, "echo "+with+" >/tmp/with; rm -f /tmp/answer; touch /tmp/ask")
		eventually(t, "it answers", func() bool { return strings.Contains(c.sh(t, "cat /tmp/answer 2>/dev/null || true"), "-") })
		return c.sh(t, "cat /tmp/answer")
	}
	one, other, third := sum(made[0], "a"), sum(made[1], "b"), sum(made[2], "a")
	if one != third || one == other {
		t.Errorf("memory has the sums %q, %q and %q after a, b and a were written", one, other, third)
	}
	n.crisp(t, "snapshots", "rm", "big")
}

// testWarmStart has a program that takes three seconds until it serves.
func testWarmStart(t *testing.T, n *node) {
	p := n.pod(t, podNamed("slow"))
	c := p.start(t, sh("sleep 3; echo 0; i=1; while true; do echo $i; i=$((i+1)); sleep 0.01; done"))
	eventually(t, "it serves", func() bool { return c.count(t) > 0 })
	n.snapshotted(t, "e2e/slow", "warm")

	began := time.Now()
	d := n.clones(t, "warm")[0]
	eventually(t, "it serves", func() bool { first, _ := d.countFrom(t); return first > 0 })
	t.Logf("a warm start took %v", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > pace.Scale(2*time.Second) {
		t.Errorf("a warm start took %v, and the program itself takes 3 s", took)
	}
	n.crisp(t, "snapshots", "rm", "warm")
}

func testSnapshotRefusals(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	n.refused(t, 1, "no container of it is running", "snapshot", "e2e/web", "one")
	c := p.start(t, sh(counting), named("app"))
	n.snapshotted(t, "e2e/web", "one")

	n.refused(t, 1, "already exists", "snapshot", "e2e/web", "one")
	n.refused(t, 1, "cannot be called", "snapshot", "e2e/web", "../one")
	n.refused(t, 1, "cannot be called", "snapshot", "e2e/web", ".one")
	n.refused(t, 1, "is a container", "snapshot", "e2e/web/app", "two")
	n.refused(t, 6, "none", "snapshot", "e2e/none", "two")
	n.refused(t, 1, "not found", "clone", "none")
	n.refused(t, 1, "no snapshot is called", "clone", "--name", "x", "../../x")
	n.refused(t, 1, "cannot be called", "clone", "--name", "x/../../y", "one")
	n.refused(t, 1, "cannot be made", "clone", "-n", "0", "one")
	n.refused(t, 1, "not found", "snapshots", "rm", "none")
	n.refused(t, 1, "none is called", "snapshots", "rm", "..")

	r := p.again(t, n.path("root", "snapshots", "none"), c)
	_, err := try(t, n.Runtime.RestorePod, r)
	wantCode(t, err, codes.NotFound, "none")
	r = p.again(t, n.path("root", "snapshots", "one"), c)
	r.ContainerConfigs = nil
	_, err = try(t, n.Runtime.RestorePod, r)
	wantCode(t, err, codes.InvalidArgument, "container")

	// A clone that cannot be started leaves nothing.
	if err := os.Truncate(n.path("root", "snapshots", "one", "container-0", "checkpoint", "inventory.img"), 4); err != nil {
		t.Fatal(err)
	}
	n.refused(t, 1, "inventory.img", "clone", "one")
	if left := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	n.crisp(t, "snapshots", "rm", "one")
}

// testSnapshotDisk compares what df says of a snapshot with its memory.
func testSnapshotDisk(t *testing.T, n *node) {
	const none = `^images of checkpoints +0 B +0 images`
	wantLines(t, n.crisp(t, "df"), none, `^snapshots +0 B +0 snapshots$`, `^checkpoints +0 B `)
	p := n.pod(t, podNamed("web"))
	c := p.start(t, sh(`x=$(dd if=/dev/zero bs=1M count=5 2>/dev/null | tr '\0' x); echo "${#x}"; while sleep 1; do :; done`))
	eventually(t, "it has memory", func() bool { return strings.Contains(c.logged(t), "5242880") })
	n.snapshotted(t, "e2e/web", "large")
	defer n.crisp(t, "snapshots", "rm", "large")

	wantLines(t, n.crisp(t, "df", "-o", "wide"), none, `^snapshots +([5-9]|1\d)\.\d MiB +1 snapshots$`, `^checkpoints +0 B `, `^SNAPSHOT +SIZE$`, `^large +\d+\.\d MiB`)
	var d struct {
		Snapshots []struct {
			Name  string
			Bytes int64
		}
	}
	if err := json.Unmarshal([]byte(n.crisp(t, "df", "-o", "json")), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Snapshots) != 1 || d.Snapshots[0].Name != "large" || d.Snapshots[0].Bytes < 5<<20 || d.Snapshots[0].Bytes > 30<<20 {
		t.Errorf("the disk has %+v", d)
	}
}

// testUnfinishedSnapshot has drafts that a killed daemon has left.
func testUnfinishedSnapshot(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	p.start(t, sh(counting))
	n.snapshotted(t, "e2e/web", "whole")
	draft := n.path("root", "snapshots", ".0123456789abcdef")
	if err := os.MkdirAll(filepath.Join(draft, "container-0"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.Kill()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	eventually(t, "it is removed", func() bool { _, err := os.Stat(draft); return errors.Is(err, os.ErrNotExist) })
	var list []struct {
		Name, Path, Pod string
		Containers      []string
		Bytes           int64
	}
	if err := json.Unmarshal([]byte(n.crisp(t, "snapshots", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != "whole" || list[0].Pod != "e2e/web" || len(list[0].Containers) != 1 || list[0].Bytes < 1<<10 {
		t.Errorf("snapshots: %+v", list)
	}
	wantLines(t, n.crisp(t, "snapshots"), "^SNAPSHOT +POD +CONTAINERS +SIZE +AGE", "^whole +e2e/web ")
	n.clones(t, "whole")
	n.crisp(t, "snapshots", "rm", "whole")
	if left, err := os.ReadDir(n.path("root", "snapshots")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
