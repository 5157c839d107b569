package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// changing makes every kind of change to the image's files, and says when it is done.
const changing = `mkdir -p /d/e/f; echo text >/d/e/file; ln /d/e/file /d/hard; ln -s /etc/shadow /d/link; chown 7:8 /d/e; chmod 4711 /d/e/file
mkfifo /d/pipe; mknod /d/null c 1 3; mkdir -m 1777 /d/sticky; touch -d '2001-02-03 04:05:06' /d/old; dd if=/dev/zero of=/d/hole bs=1 count=1 seek=1M 2>/dev/null
rm /etc/group; mv /etc/passwd /etc/passwd2; echo other >>/etc/shadow; rm -r /usr/bin; mkdir /usr/bin; echo new >/usr/bin/new; rm -r /var; echo file >/var; chmod 711 /
echo written; sleep 1000`

// tree describes all files that changing makes, and what it replaces.
const tree = `cd /; stat -c '/ %A %u:%g' /; find d etc usr var | grep -v -e etc/hosts -e etc/hostname -e etc/resolv.conf | sort | while read -r f; do
s=-; [ -f "$f" ] && s="$(md5sum <"$f") $(stat -c %s:%Y "$f")"; [ -L "$f" ] && s=$(readlink "$f"); stat -c "%n %A %u:%g %t:%T %h $s" "$f"; done`

// TestCommit makes images of containers, and starts pods of them.
func TestCommit(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "files", func(t *testing.T) { testCommitFiles(t, n, func(*runtimeapi.PodSandboxConfig) {}) })
	n.run(t, "user namespace", func(t *testing.T) { testCommitFiles(t, n, userNamespace(300000)) })
	n.run(t, "states", func(t *testing.T) { testCommitStates(t, n) })
	n.run(t, "frozen", func(t *testing.T) { testCommitFreezes(t, n) })
	n.run(t, "removed", func(t *testing.T) { testCommitRemoved(t, n) })
	n.run(t, "refusals", func(t *testing.T) { testCommitRefusals(t, n) })
}

// testCommitFiles compares the files of a container with those of one that is started of
// its image, on this node and on another one.
func testCommitFiles(t *testing.T, n *node, in func(*runtimeapi.PodSandboxConfig)) {
	p := n.pod(t, in, podNamed("web"))
	c := p.start(t, named("app"), sh(changing))
	eventually(t, "it has written", func() bool { return strings.Contains(c.logged(t), "written") })
	const note, value = "user.note", "a\nb"
	if err := unix.Setxattr(fmt.Sprintf("/proc/%d/root/d/e/file", c.pid(t)), note, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	want := c.sh(t, tree)
	if got := n.crisp(t, "commit", "-m", "why", "web/app", "state:1"); got != "docker.io/library/state:1\n" {
		t.Errorf("commit printed %q", got)
	}
	if got := c.sh(t, tree); got != want {
		t.Errorf("the container has changed:\n%s\nwas\n%s", got, want)
	}
	archive := filepath.Join(t.TempDir(), "state.tar")
	n.crisp(t, "images", "export", "-o", archive, "state:1")
	p.remove(t)

	other := lonely(t)
	if got := other.crisp(t, "images", "import", archive); got != "docker.io/library/state:1\n" {
		t.Errorf("import printed %q", got)
	}
	for _, n := range []*node{n, other} {
		for _, in := range []func(*runtimeapi.PodSandboxConfig){func(*runtimeapi.PodSandboxConfig) {}, userNamespace(400000)} {
			p := n.pod(t, in)
			c := p.start(t, image("state:1"))
			if got := c.sh(t, tree); got != want {
				t.Errorf("the image has\n%s\nwant\n%s", got, want)
			}
			var got [10]byte
			size, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root/d/hard", c.pid(t)), note, got[:])
			if err != nil || string(got[:size]) != value {
				t.Errorf("the attribute is %q, %v", got[:max(size, 0)], err)
			}
			p.remove(t)
		}
	}
	if out := n.crisp(t, "images", "check"); !strings.Contains(out, " 0 damaged") {
		t.Errorf("check says %s", out)
	}
	n.crisp(t, "rmi", "state:1")
}

// testCommitStates commits containers that were created and that have ended, and one that
// has changed nothing, whose image has the same layers.
func testCommitStates(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.create(t, named("app"), sh("echo 1 >/mine"))
	n.crisp(t, "commit", "web/app", "created")
	c.start(t)
	c.wantEnd(t, 0, "Completed")
	n.crisp(t, "commit", "--pin", "web/app", "ended")
	if got := p.output(t, "cat /mine", image("ended")); got != "1\n" {
		t.Errorf("of one that has ended: %q", got)
	}
	still := p.start(t, named("still"), func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true })
	n.crisp(t, "commit", "--no-freeze", "web/still", "same")

	layers := func(name string) (digests []string) {
		for file, data := range untar(t, exportedBy(t, n, name)) {
			var m struct{ Layers []struct{ Digest string } }
			if strings.HasPrefix(file, "blobs/") && json.Unmarshal(data, &m) == nil {
				for _, l := range m.Layers {
					digests = append(digests, l.Digest)
				}
			}
		}
		return digests
	}
	base := fmt.Sprint(layers(busybox))
	if created, same, ended := layers("created"), layers("same"), layers("ended"); fmt.Sprint(created) != base || fmt.Sprint(same) != base || len(ended) != len(layers(busybox))+1 {
		t.Errorf("layers of the base %s, created %q, without changes %q, ended %q", base, created, same, ended)
	}
	status := func(name string) *runtimeapi.Image {
		return call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}}).GetImage()
	}
	if !status("ended").GetPinned() || status("same").GetPinned() {
		t.Error("not the one that was to be is pinned")
	}
	still.stop(t, 0)
	p.remove(t)
	if out := n.crisp(t, "images", "gc", "--age", "0s"); !strings.Contains(out, "/same:latest") || strings.Contains(out, "/ended:latest") {
		t.Errorf("gc removed %s", out)
	}
	n.crisp(t, "rmi", "ended")
	n.pull(t, busybox)
}

// exportedBy is an archive of an image.
func exportedBy(t *testing.T, n *node, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	n.crisp(t, "images", "export", "-o", file, name)
	return file
}

// testCommitFreezes commits a container that gives the next number to eight files in turn,
// with a file among them that takes long to read: of one moment, the numbers are the same,
// or one more up to some file.
func testCommitFreezes(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"), sh(`mkdir /d; cd /d; dd if=/dev/urandom of=long bs=1M count=32 2>/dev/null
i=0; while true; do i=$((i+1)); for f in 1 2 3 4 5 6 7 8; do echo $i >new; mv new $f; done; done`))
	eventually(t, "it writes", func() bool { return c.sh(t, "cat /d/8 2>/dev/null || true") != "" })

	for range 3 {
		n.crisp(t, "commit", "web/app", "state")
		numbers := strings.Fields(p.output(t, "cd /d; cat 1 2 3 4 5 6 7 8", image("state")))
		numbers = numbers[len(numbers)-8:] // the log goes on from one to the next
		first, err := strconv.Atoi(numbers[0])
		if err != nil {
			t.Fatal(err)
		}
		before := strconv.Itoa(first - 1)
		later := slices.Index(numbers, before)
		if later < 0 {
			later = len(numbers)
		}
		for i, number := range numbers {
			if i < later && number != numbers[0] || i >= later && number != before {
				t.Errorf("the numbers are %q", numbers)
				break
			}
		}
	}
	n.crisp(t, "commit", "--no-freeze", "web/app", "live")
	before := c.sh(t, "cat /d/8")
	eventually(t, "it goes on", func() bool { return c.sh(t, "cat /d/8") != before })
	p.remove(t)
	n.crisp(t, "rmi", "state", "live")
}

// testCommitRemoved removes a container with many files while it is committed. Both end,
// and what is half made is not left.
func testCommitRemoved(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	for _, force := range []bool{true, false} { // running, or ended
		log := func(c *runtimeapi.ContainerConfig) { c.LogPath = fmt.Sprintf("%t.log", force) }
		c := p.start(t, named("app"), log, sh("mkdir /d; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i >/d/$i; done; echo written; sleep 1000"))
		eventually(t, "it has written", func() bool { return strings.Contains(c.logged(t), "written") })
		if !force {
			c.stop(t, 0)
		}

		done := make(chan said, 1)
		cmd := n.command(t, "commit", "web/app", "state")
		go func() { done <- finish(t, cmd) }()
		time.Sleep(50 * time.Millisecond)
		c.remove(t)
		switch s := <-done; {
		case s.code == 0:
			if got := p.output(t, "ls /d | wc -l", image("state")); got != "3000\n" {
				t.Errorf("the image has %s files", got)
			}
			n.crisp(t, "rmi", "state")
		case !strings.Contains(s.err, "stopped or removed") && !strings.Contains(s.err, "not found") && !strings.Contains(s.err, "there is no container"):
			t.Errorf("the commit said %+v", s)
		}
		if left := inventory.Cgroups(c.id); len(left) > 0 {
			t.Errorf("left of the container: %q", left)
		}
	}
	p.remove(t)
}

// testCommitRefusals has what makes no image, and says why.
func testCommitRefusals(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"), sh("echo x >/.wh.bin; sleep 1000"))
	eventually(t, "it has written", func() bool { return c.sh(t, "cat /.wh.bin || true") == "x" })
	n.refused(t, 6, "none", "commit", "web/none", "state")
	n.refused(t, 1, "invalid image reference", "commit", "web/app", "NOT A NAME")
	n.refused(t, 1, "begin with .wh.", "commit", "web/app", "state")
	n.refused(t, 1, "timed out", "commit", "--timeout", "1ns", "web/app", "state")
	c.sh(t, "rm /.wh.bin")

	const ref = "gcr.io/k8s-staging-cri-tools/test-image-1:latest"
	n.pull(t, ref)
	gone := p.start(t, named("gone"), image(ref), sh("sleep 1000"))
	call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	n.refused(t, 1, "was removed, pull it again", "commit", "web/gone", "state")
	n.pull(t, ref)
	n.crisp(t, "commit", "web/gone", "state")
	gone.remove(t)
	n.crisp(t, "rmi", "state", ref)
	left, err := os.ReadDir(n.path("root", "image", "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left of commits: %v, %v", left, err)
	}
	p.remove(t)
}

// TestCommitCostsItsChanges commits containers of a large image: it takes as long as of a
// small one.
func TestCommitCostsItsChanges(t *testing.T) {
	n := newNode(t, lab.Options{})
	p := n.pod(t, podNamed("web"))
	// The node must have room for thrice as much.
	big := p.start(t, named("big"), sh("dd if=/dev/urandom of=/big bs=1M count=512 2>/dev/null; echo written; sleep 1000"))
	eventually(t, "it has written", func() bool { return strings.Contains(big.logged(t), "written") })
	began := time.Now()
	n.crisp(t, "commit", "web/big", "big")
	whole := time.Since(began)
	big.remove(t)

	script := sh("dd if=/dev/urandom of=/mine bs=1M count=1 2>/dev/null; rm -f /big; echo written; sleep 1000")
	times := map[string]time.Duration{}
	for _, name := range []string{busybox, "big"} {
		c := p.start(t, named("app"), image(name), script, func(c *runtimeapi.ContainerConfig) { c.LogPath = filepath.Base(name) + ".log" })
		eventually(t, "it has written", func() bool { return strings.Contains(c.logged(t), "written") })
		for range 5 {
			began := time.Now()
			n.crisp(t, "commit", "web/app", "state")
			if took := time.Since(began); times[name] == 0 || took < times[name] {
				times[name] = took
			}
		}
		c.remove(t)
	}
	t.Logf("512 MiB in %v, 1 MiB on top of them in %v, on top of a small image in %v", whole, times["big"], times[busybox])
	if times["big"] > whole/4 || times["big"] > 5*times[busybox] {
		t.Error("a commit costs what its image has")
	}
	p.remove(t)
	n.crisp(t, "rmi", "state", "big")
}
