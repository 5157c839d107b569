package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	// callTime bounds every call; none takes nearly as long.
	callTime = 30 * time.Second
	// maxAnswer is kubelet's maximum message size.
	maxAnswer = 16 << 20
)

func TestMain(m *testing.M) {
	if runProgram() || hold() {
		return
	}
	os.Exit(testkit.Main(m))
}

// node is a daemon under test.
type node struct{ *lab.Lab }

// newNode starts a daemon that has pulled busybox; it is stopped at the end of
// the test.
func newNode(t *testing.T, opt lab.Options) *node {
	t.Helper()
	testkit.Root(t)
	testkit.Leaks(t)
	n := &node{testkit.Daemon(t, opt)}
	n.pull(t, busybox)
	n.warm(t)
	return n
}

// warm makes the daemon open descriptors that it opens once and keeps.
func (n *node) warm(t *testing.T) {
	t.Helper()
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "warm-up" })
	c := p.start(t)
	c.sh(t, "true")
	c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 100})
	p.remove(t)
}

func (n *node) pull(t *testing.T, ref string) string {
	t.Helper()
	return call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}).ImageRef
}

// run runs a subtest and checks for leaks on the node.
func (n *node) run(t *testing.T, name string, test func(t *testing.T)) bool {
	t.Helper()
	return t.Run(name, func(t *testing.T) {
		n.checkLeaks(t)
		test(t)
	})
}

func (n *node) path(parts ...string) string {
	return filepath.Join(append([]string{n.Dir}, parts...)...)
}

// call makes a call that must succeed.
func call[Q, A any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	t.Helper()
	answer, err := try(t, f, request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// try makes a call. It works in cleanups too.
func try[Q, A any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), pace.Scale(callTime))
	defer cancel()
	return f(ctx, request, grpc.MaxCallRecvMsgSize(maxAnswer))
}

// eventually polls until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(pace.Scale(30 * time.Second)); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}
