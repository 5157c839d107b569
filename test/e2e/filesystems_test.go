package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestFileSystems takes a daemon whose data is on each file system through a
// pull, what containers do to their files, statistics, a restart and removal.
func TestFileSystems(t *testing.T) {
	testkit.Root(t)
	for _, fs := range []struct {
		name string
		// mkfs makes a file system on a disk. It is empty for one in memory.
		mkfs []string
		// mapped is the first Linux whose file system supports id-mapped mounts.
		mapped [2]int
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F"}, [2]int{5, 12}},
		{"xfs", []string{"mkfs.xfs", "-q"}, [2]int{5, 12}},
		{"btrfs", []string{"mkfs.btrfs", "-q"}, [2]int{5, 15}},
		{"tmpfs", nil, [2]int{6, 3}},
	} {
		t.Run(fs.name, func(t *testing.T) {
			dir := t.TempDir()
			if fs.mkfs == nil {
				mountMemory(t, dir)
			} else {
				mountDisk(t, dir, 1<<30, 0, fs.mkfs...)
			}

			n := newNode(t, lab.Options{Dir: filepath.Join(dir, "node")})
			n.pull(t, nginx)
			n.run(t, "files", func(t *testing.T) { testFiles(t, n) })
			n.run(t, "statistics", func(t *testing.T) { testLayerStats(t, n) })
			n.run(t, "restart", func(t *testing.T) { testRestartOn(t, n) })
			t.Run("user namespace", func(t *testing.T) {
				if !testkit.KernelAtLeast(t, fs.mapped[0], fs.mapped[1]) {
					testkit.Skip(t, fmt.Sprintf("linux %d.%d", fs.mapped[0], fs.mapped[1]), "id-mapped mounts of "+fs.name)
				}
				n.checkLeaks(t)
				testMappedFiles(t, n)
			})
			testEmptied(t, n)
		})
	}
}

// mountDisk mounts a new disk of a size in bytes on a directory until the test ends,
// when it is unmounted with flags.
func mountDisk(t *testing.T, dir string, size int64, flags int, mkfs ...string) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	for _, args := range [][]string{
		{"truncate", "-s", strconv.FormatInt(size, 10), disk}, append(mkfs, disk), {"mount", "-o", "loop", disk, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			testkit.Skip(t, "a loop device and "+mkfs[0], fmt.Sprintf("%q: %v: %s", args, err, out))
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, flags); err != nil {
			t.Errorf("unmount the disk: %v", err)
		}
	})
}

func mountMemory(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount memory: %v", err)
		}
	})
}

// testFiles does to files of the image what a program may do: what it sees must be
// what it did, and another container of the image must see nothing of it.
func testFiles(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t)
	for _, step := range []struct{ script, want string }{
		{"echo new > /etc/new && ln /etc/new /etc/linked && echo more >> /etc/linked && cat /etc/new", "new\nmore"},
		{"rm /etc/group && mkdir /etc/group && ls -A /etc/group", ""},
		{"rm -r /home && mkdir /home && ls -A /home && rmdir /home && ls /home 2>/dev/null || echo gone", "gone"},
		{"mv /bin/vi /tmp/moved && ls /bin/vi 2>/dev/null || cmp /bin/sh /tmp/moved && echo same", "same"},
		{"chown 7:8 /etc/passwd && chmod 4711 /etc/passwd && stat -c '%u %g %a' /etc/passwd", "7 8 4711"},
		{"mkfifo /tmp/fifo && mknod /tmp/null c 1 3 && echo x > /tmp/null && stat -c %F /tmp/null", "character special file"},
		{"ln -s /etc/new /tmp/link && cat /tmp/link && rm /tmp/link", "new\nmore"},
		{"dd if=/dev/zero of=/tmp/sparse bs=1 count=1 seek=100M 2>/dev/null && stat -c %s /tmp/sparse", "104857601"},
		{"cp -a /bin /tmp/bin && cmp /bin/busybox /tmp/bin/busybox && /tmp/bin/busybox echo whole", "whole"},
		{"mkdir /tmp/many && for i in $(seq 500); do echo $i > /tmp/many/$i; done && cat /tmp/many/* | wc -l && rm -r /tmp/many && ls -d /tmp", "500\n/tmp"},
	} {
		if got := c.sh(t, step.script); got != step.want {
			t.Errorf("%s: %q, want %q", step.script, got, step.want)
		}
	}

	other := p.start(t, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "other" })
	if got := other.sh(t, "ls /etc/new /tmp/moved /tmp/sparse 2>/dev/null; stat -c '%u %F' /etc/group"); got != "0 regular file" {
		t.Errorf("another container of the image sees %q", got)
	}
}

// testLayerStats writes to a container's layer and expects both bytes and inodes
// in its statistics.
func testLayerStats(t *testing.T, n *node) {
	c := n.pod(t).start(t)
	usage := func() (bytes, inodes uint64) {
		l := call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id}).Stats.WritableLayer
		return l.GetUsedBytes().GetValue(), l.GetInodesUsed().GetValue()
	}

	bytes, inodes := usage()
	c.sh(t, "dd if=/dev/urandom of=/tmp/big bs=1M count=8 2>/dev/null && for i in $(seq 50); do echo > /tmp/$i; done && sync")
	eventually(t, "8 MiB and 51 files in the statistics of the layer", func() bool {
		b, i := usage()
		return b >= bytes+8<<20 && b < bytes+16<<20 && i >= inodes+51 && i < inodes+60
	})
}

// testRestartOn restarts the daemon: containers and their files stay.
func testRestartOn(t *testing.T, n *node) {
	c := n.pod(t).start(t)
	c.sh(t, "echo kept > /kept")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	if got := c.sh(t, "cat /kept"); got != "kept" {
		t.Errorf("after a restart the file contains %q", got)
	}
	n.warm(t) // the new daemon too
}

// testMappedFiles expects files of the image to belong to the container's root in
// a user namespace, and new ones to the mapped owner outside.
func testMappedFiles(t *testing.T, n *node) {
	const first = 200000
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		ids := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: 65536}}
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	c := p.start(t)
	if got := c.sh(t, "echo > /mine && stat -c '%u %g' /bin/sh /mine && tr -s ' ' < /proc/self/uid_map"); got != "0 0\n0 0\n 0 200000 65536" {
		t.Errorf("in the user namespace: %q", got)
	}
}

// testEmptied removes all images and expects nothing of them on the disk.
func testEmptied(t *testing.T, n *node) {
	for _, i := range call(t, n.Images.ListImages, &runtimeapi.ListImagesRequest{}).Images {
		call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}})
	}
	eventually(t, "no layer left but the empty one, and no container", func() bool {
		return slices.Equal(below(n.path("root/image/layers")), []string{"empty"}) && len(below(n.path("root/image/containers"))) == 0
	})
	if left := below(n.path("root/pods")); len(left) > 0 {
		t.Errorf("records left: %s", strings.Join(left, " "))
	}
}

// below lists the entries of a directory.
func below(dir string) (names []string) {
	entries, _ := os.ReadDir(dir) // none if missing
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
