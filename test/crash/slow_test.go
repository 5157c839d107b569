//go:build crash

package crash

import (
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// slow is a disk whose syncs block while stopped is held.
type slow struct {
	*volatile
	stopped sync.Mutex
}

func (d *slow) Sync() {
	d.stopped.Lock()
	defer d.stopped.Unlock()
	d.volatile.Sync()
}

// TestFaultSlowDisk stops the daemon after a pull, while the sync of the image is
// blocked. The daemon ends in time and releases its locks, and the next one has
// the image.
func TestFaultSlowDisk(t *testing.T) {
	testkit.Root(t)
	disk := &slow{volatile: newVolatile(t, fileSystems()[0])}
	dir := dataOn(t, disk, "loop,commit=60")
	n := &node{Lab: testkit.Daemon(t, lab.Options{Dir: dir, Crisp: build(t)}), orders: t.TempDir()}
	for when, wait := range map[string]time.Duration{"before it syncs": 0, "while it syncs": 6 * time.Second} {
		call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
		disk.stopped.Lock()
		time.Sleep(wait)

		// A process that waits for a disk cannot even be killed.
		release := sync.OnceFunc(disk.stopped.Unlock)
		late := time.AfterFunc(pace.Scale(15*time.Second), release)
		began := time.Now()
		err := n.Stop()
		took := time.Since(began)
		late.Stop()
		release()

		if err != nil || took > pace.Scale(10*time.Second) {
			t.Errorf("%s: the daemon took %v to end: %v", when, took, err)
		}
		t.Logf("%s: the daemon ended in %v", when, took)
		n.begin(t)

		if !n.pullAndRun(t, nginx, "after") {
			t.Errorf("%s: the image is not usable", when)
		}
		call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
	}
}
