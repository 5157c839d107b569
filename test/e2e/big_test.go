package e2e

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestBigAnnotations fills a pod with containers that have as many annotations
// as Kubernetes allows: each costs as much as the first one, and a stream lists
// them although they exceed the size of one message.
func TestBigAnnotations(t *testing.T) {
	n := newNode(t, lab.Options{})
	long := func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"long": strings.Repeat("x", 256<<10)}
	}

	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"long": strings.Repeat("x", 256<<10)}
	})

	const count = 80
	var took []time.Duration
	for i := range count {
		begin := time.Now()
		p.create(t, named(fmt.Sprint("main", i)), sh("sleep 1000"), long)
		took = append(took, time.Since(begin))
	}

	median := func(d []time.Duration) time.Duration { return slices.Sorted(slices.Values(d))[len(d)/2] }
	first, last := median(took[:count/4]), median(took[count-count/4:])
	t.Logf("of %d containers the first took %v to create, the last %v", count, first, last)
	if last > 3*first {
		t.Errorf("creating took %v at first and %v at last", first, last)
	}

	assertStreamed(t, n, count)
	_, err := n.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a list of more than one message takes: %v", err)
	}

	// The next daemon reads all of it again.
	n.Kill()
	n.begin(t)
	assertStreamed(t, n, count)
	p.remove(t)
}

func assertStreamed(t *testing.T, n *node, count int) {
	t.Helper()
	stream, err := n.Runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}

	seen := map[string]bool{}
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}

		for _, c := range part.Containers {
			if len(c.Annotations["long"]) != 256<<10 {
				t.Errorf("container %s has %d bytes of annotations", c.Id, len(c.Annotations["long"]))
			}
			seen[c.Id] = true
		}
	}

	if len(seen) != count {
		t.Errorf("%d of %d containers are listed", len(seen), count)
	}
}
