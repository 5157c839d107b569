//go:build crash

package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/fuse"
	"crisp/test/testkit/lab"
)

const (
	nginx = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	// diskSize is enough for both images, and the least that mkfs.xfs accepts.
	diskSize = 300 << 20
	// sector is the unit of atomic writes, in bytes.
	sector = 4096
	cuts   = 6
)

// fileSystem is a kind of file system for the data directory.
type fileSystem struct {
	name string
	mkfs []string
	// options are those of a mount that flushes by itself every second, if the file
	// system can be told to.
	options string
}

// fileSystems returns all kinds, the one that other tests use first.
func fileSystems() []fileSystem {
	return []fileSystem{
		{"ext4", []string{"mke2fs", "-q", "-t", "ext4", "-m", "0"}, "loop,commit=1"},
		{"xfs", []string{"mkfs.xfs", "-q"}, "loop"},
		{"btrfs", []string{"mkfs.btrfs", "-q"}, "loop,commit=1"},
	}
}

// volatile is a disk with a write-back cache: any of the writes since the last
// flush may be lost.
type volatile struct {
	mu sync.Mutex
	// now is the content with the cache, safe what survives a power cut.
	now, safe []byte
	// unsafe are the sectors written since the last flush, by number.
	unsafe map[int64]bool
	writes int
}

func (d *volatile) Open() bool  { return true }
func (d *volatile) Size() int64 { return diskSize }

func (d *volatile) ReadAt(buf []byte, at int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(buf, d.now[at:])
}

func (d *volatile) WriteAt(data []byte, at int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.now[at:], data)
	d.writes++
	for i := at / sector; i <= (at+int64(len(data))-1)/sector; i++ {
		d.unsafe[i] = true
	}
}

func (d *volatile) Sync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.unsafe {
		copy(d.safe[i*sector:], d.now[i*sector:(i+1)*sector])
	}
	clear(d.unsafe)
}

func (d *volatile) dirty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.unsafe) > 0
}

// cut returns the content after a power cut now, and how many sectors it lost.
func (d *volatile) cut(random *rand.Rand) (image []byte, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	image = slices.Clone(d.safe)
	written := random.IntN(101) // percent
	sectors := make([]int64, 0, len(d.unsafe))
	for i := range d.unsafe {
		sectors = append(sectors, i)
	}

	slices.Sort(sectors) // so that -seed repeats a run
	for _, i := range sectors {
		if random.IntN(100) < written {
			copy(image[i*sector:], d.now[i*sector:(i+1)*sector])
		} else {
			lost++
		}
	}

	return image, lost
}

// TestFaultPower cuts the power while images are pulled and pods run, and starts a
// daemon on what is left on the disk.
func TestFaultPower(t *testing.T) {
	testkit.Root(t)
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 4))
	binary := build(t)
	var score score
	for _, fs := range fileSystems() {
		images := t.TempDir()
		// A file system is unmounted before its images are mounted: XFS and Btrfs
		// refuse two at a time with one identity.
		t.Run(fs.name, func(t *testing.T) { powerCuts(t, binary, fs, images, random) })
		for i := range cuts {
			image := filepath.Join(images, fmt.Sprint(i))
			score.add("pulls and pods", fs.name, t.Run(fmt.Sprintf("%s/%d", fs.name, i), func(t *testing.T) { afterPowerCut(t, binary, image) }))
		}
	}
	score.publish(t, "power cuts")
}

// newVolatile makes a disk with an empty file system.
func newVolatile(t *testing.T, fs fileSystem) *volatile {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	command(t, "truncate", "-s", fmt.Sprint(diskSize), image)
	command(t, fs.mkfs[0], append(fs.mkfs[1:], image)...)
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return &volatile{now: data, safe: slices.Clone(data), unsafe: map[int64]bool{}}
}

// dataOn serves a disk and mounts it as the data directory of a daemon, whose
// directory it returns.
func dataOn(t *testing.T, disk fuse.File, options string) (dir string) {
	t.Helper()
	served := filepath.Join(t.TempDir(), "served")
	if err := os.Mkdir(served, 0o755); err != nil {
		t.Fatal(err)
	}
	f := fuse.Serve(t, served, disk)
	t.Cleanup(f.End)
	dir = t.TempDir()
	mountDisk(t, dir, filepath.Join(served, "file"), options)
	return dir
}

// powerCuts runs a daemon on a volatile disk, and writes images of what power cuts
// at random moments would leave to a directory, named by number.
func powerCuts(t *testing.T, binary string, fs fileSystem, images string, random *rand.Rand) {
	t.Helper()
	disk := newVolatile(t, fs)
	dir := dataOn(t, disk, fs.options)
	n := &node{Lab: testkit.Daemon(t, lab.Options{Dir: dir, Crisp: binary}), orders: t.TempDir()}
	var work sync.WaitGroup
	quit := make(chan struct{})
	work.Go(func() { n.busy(t, quit) })
	for i := range cuts {
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
		for tries := 0; tries < 1000 && !disk.dirty(); tries++ {
			time.Sleep(time.Millisecond) // until there is something to lose
		}

		left, lost := disk.cut(random)
		t.Logf("cut %d: %d writes so far, %d unflushed sectors are lost", i, disk.writes, lost)
		if err := os.WriteFile(filepath.Join(images, fmt.Sprint(i)), left, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	close(quit)
	work.Wait()
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// busy pulls and removes images and pods until quit is closed.
func (n *node) busy(t *testing.T, quit chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-quit:
			return
		default:
		}

		ref := []string{busybox, nginx}[i%2]
		if !n.pullAndRun(t, ref, fmt.Sprintf("busy-%d", i)) {
			return
		}
		if i%3 == 2 {
			_, _ = try(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		}
	}
}

// pullAndRun uses an image in a pod, and removes the pod.
func (n *node) pullAndRun(t *testing.T, ref, name string) bool {
	s := n.newScene(t)
	kinds[2].change(s)
	s.pod.Metadata.Name = name
	s.container.Image.Image = ref

	_, err := try(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: s.container.Image})
	for _, step := range []func() error{s.tryRun, s.tryCreate, s.tryStart, s.tryStop, s.tryStopPod, s.tryRemovePod} {
		if err == nil {
			err = step()
		}
	}

	if err != nil {
		t.Errorf("use image %s: %v", ref, err)
	}
	return err == nil
}

// sum returns the checksum of an image's programs, as a container sees them.
func (n *node) sum(t *testing.T, ref string) string {
	t.Helper()
	s := n.newScene(t)
	kinds[2].change(s)
	s.container.Image.Image = ref
	s.container.Command = []string{"sh", "-c", "find /bin /usr/bin /usr/sbin -type f | sort | xargs cat | md5sum"}
	s.container.Tty, s.container.Stdin = false, false
	s.run()
	s.create()
	s.start()
	s.wantEnd()
	s.must("remove pod", s.tryRemovePod())

	words := strings.Fields(slurp(filepath.Join(n.Dir, "logs/main.log")))
	if len(words) < 2 || len(words[len(words)-2]) != 32 {
		t.Fatalf("the log contains %q", words)
	}
	return words[len(words)-2]
}

// afterPowerCut starts a daemon on what a power cut has left.
func afterPowerCut(t *testing.T, binary, image string) {
	dir := t.TempDir()
	mountDisk(t, dir, image, "loop")
	boot := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(boot, fmt.Appendf(nil, "00000000-0000-0000-0001-%012x\n", time.Now().UnixNano()&0xffffffffffff), 0o444); err != nil {
		t.Fatal(err)
	}

	if err := unix.Mount(boot, bootID, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bootID, unix.MNT_DETACH) })

	n := &node{Lab: testkit.Daemon(t, lab.Options{Dir: dir, Crisp: binary}), orders: t.TempDir()}
	s := n.newScene(t)
	for _, p := range s.pods() {
		if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod %s is %v after a power cut", p.Metadata.Name, p.State)
		}
	}

	s.wantListed()
	s.removeAll()
	listed := call(t, n.Images.ListImages, &runtimeapi.ListImagesRequest{}).Images
	t.Logf("%d images are left", len(listed))

	first := map[string]string{}
	for _, i := range listed {
		for _, ref := range i.RepoTags {
			first[ref] = n.sum(t, ref)
		}
	}

	for _, ref := range []string{busybox, nginx} {
		call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if sum := n.sum(t, ref); first[ref] != "" && first[ref] != sum {
			t.Errorf("image %s had the content %q, but %q when pulled again", ref, first[ref], sum)
		}
	}

	for _, directory := range []string{"root/pods", "root/image/containers"} {
		if left := n.files(t, directory); len(left) > 1 {
			t.Errorf("left are %s", strings.Join(left, ", "))
		}
	}
}
