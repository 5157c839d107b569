//go:build crash

package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var pullKills = flag.Int("pulls", 10, "how many kills at random moments of a pull are tried for each disturbance")

// Disturbances of a pull before the kill.
const (
	pullKilled    = "kill"
	pullBoth      = "kill with keeper"
	pullCancelled = "cancelled, then kill"
	pullRemoved   = "image removed during pull, kill"
	pullTwice     = "two pulls of one image, kill"
	pullInUse     = "image in use pulled again, kill"
	pullSlowdown  = 2 // the kill comes within this many times the usual duration
)

// TestPull kills the daemon at random moments of a pull. Images that are listed
// after the restart have the right content, the same pull succeeds, and once the
// image is removed no blob, layer or temporary file of it is left.
func TestPull(t *testing.T) {
	n := newNode(t)
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 5))
	begin := time.Now()
	n.pull(t, nginx)

	took := time.Since(begin)
	want := n.sum(t, nginx)
	n.removeImage(t, nginx)
	t.Logf("a pull takes %v", took)

	score := score{first: "pull"}
	for _, way := range []string{pullKilled, pullBoth, pullCancelled, pullRemoved, pullTwice, pullInUse} {
		for i := range *pullKills {
			after := time.Duration(random.Int64N(int64(pullSlowdown * took)))
			name := fmt.Sprintf("%s/%d after %v", way, i, after)
			score.add(way, "at a random moment", t.Run(name, func(t *testing.T) { n.killedPull(t, way, after, want, random) }))
		}
	}
	score.publish(t, "crashes during pulls")
}

func (n *node) pull(t *testing.T, ref string) {
	t.Helper()
	call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
}

func (n *node) removeImage(t *testing.T, ref string) {
	t.Helper()
	call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
}

// has reports whether an image is listed.
func (n *node) has(t *testing.T, ref string) bool {
	t.Helper()
	return call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}}).Image != nil
}

func (n *node) killedPull(t *testing.T, way string, after time.Duration, want string, random *rand.Rand) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	if way == pullInUse {
		n.pull(t, nginx)
		kinds[2].change(s)
		s.container.Image.Image = nginx
		s.container.Tty, s.container.Stdin = false, false
		s.run()
		s.create()
		s.start()
		n.removeImage(t, nginx) // its layers stay for the container
	}

	var calls sync.WaitGroup
	n.disturbedPull(t, &calls, way, random, after)
	time.Sleep(after)
	n.Kill()

	if way == pullBoth {
		n.killKeeper(t)
	}
	calls.Wait()
	n.begin(t)

	if way == pullInUse {
		s.wantAlive()
		s.must("remove pod", s.tryRemovePod())
	}

	if n.has(t, nginx) {
		if got := n.sum(t, nginx); got != want {
			t.Errorf("a listed image has the content %s, want %s", got, want)
		}
	}

	n.pull(t, nginx)
	if got := n.sum(t, nginx); got != want {
		t.Errorf("the image of the next pull has the content %s, want %s", got, want)
	}
	n.removeImage(t, nginx)
}

// disturbedPull begins a pull and its disturbance.
func (n *node) disturbedPull(t *testing.T, calls *sync.WaitGroup, way string, random *rand.Rand, end time.Duration) {
	pull := func(limit time.Duration) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
		defer cancel()
		_, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
		if code := status.Code(err); code != codes.OK && code != codes.Unavailable && (code != codes.DeadlineExceeded || limit == callTime) {
			t.Errorf("pull: %v", err)
		}
	}

	middle := time.Duration(random.Int64N(int64(end) + 1))
	switch way {
	case pullCancelled:
		calls.Go(func() { pull(middle) })
	case pullTwice:
		calls.Go(func() { pull(callTime) })
		calls.Go(func() { time.Sleep(middle); pull(callTime) })
	case pullRemoved:
		calls.Go(func() { pull(callTime) })
		calls.Go(func() {
			for until := time.Now().Add(end); time.Now().Before(until); time.Sleep(middle / 4) {
				_, err := try(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
				if code := status.Code(err); code != codes.OK && code != codes.Unavailable {
					t.Errorf("remove image: %v", err)
				}
			}
		})
	default:
		calls.Go(func() { pull(callTime) })
	}
}
