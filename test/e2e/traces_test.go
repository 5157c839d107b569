package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/collector"
	"crisp/test/testkit/lab"
)

// inTrace makes calls in a client's trace.
func inTrace[Q, A any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (A, error), trace string, request Q) (A, error) {
	t.Helper()
	return try(t, func(ctx context.Context, q Q, o ...grpc.CallOption) (A, error) {
		return f(metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-00f067aa0ba902b7-01"), q, o...)
	}, request)
}

// spanTree is where each span of a trace is, "call > part > part of it".
func spanTree(c *collector.Collector, trace string) map[string]collector.Span {
	byID, tree := map[string]collector.Span{}, map[string]collector.Span{}
	for _, s := range c.Spans() {
		if s.Trace == trace {
			byID[s.ID] = s
		}
	}
	for _, s := range byID {
		at := s.Name
		for up, ok := byID[s.Parent]; ok; up, ok = byID[up.Parent] {
			at = up.Name + " > " + at
		}
		tree[strings.ReplaceAll(at, "runtime.v1.", "")] = s
	}
	return tree
}

// TestTraces starts a pod in traces of kubelet's, and expects what was done in them.
func TestTraces(t *testing.T) {
	c := collector.Start(t)
	cni := newPlugin(t)
	n := newNode(t, lab.Options{Config: fmt.Sprintf("tracing_endpoint = %q\n", c.Address), PluginDir: cni.dir})
	trace := func(i int) string { return fmt.Sprintf("4bf92f3577b34da6a3ce929d0e0e47%02d", i) }

	p := &pod{n: n, cfg: n.podConfig(t)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := inTrace(t, n.Images.PullImage, trace(0), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
	must(err)
	sandbox, err := inTrace(t, n.Runtime.RunPodSandbox, trace(1), &runtimeapi.RunPodSandboxRequest{Config: p.cfg})
	must(err)
	p.id = sandbox.PodSandboxId
	t.Cleanup(func() { p.remove(t) })
	cfg := p.config()
	created, err := inTrace(t, n.Runtime.CreateContainer, trace(2), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg})
	must(err)
	_, err = inTrace(t, n.Runtime.StartContainer, trace(3), &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
	must(err)
	if _, err = inTrace(t, n.Runtime.StartContainer, trace(4), &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err == nil {
		t.Error("a container that runs was started")
	}
	p.start(t, named("other")) // in no trace

	const rt, pull = "RuntimeService/", "ImageService/PullImage > pull > "
	for i, want := range [][]string{
		{pull + "fetch documents > ask registry", pull + "fetch layers > fetch layer > download and unpack > ask registry", pull + "fetch layers > publish layer", pull + "store documents"},
		{rt + "RunPodSandbox > run pod > attach network > plugin bridge ADD"},
		{rt + "CreateContainer > create container > make spec"},
		{rt + "StartContainer > start container > prepare", rt + "StartContainer > start container > open inputs", rt + "StartContainer > start container > run plan > keeper start"},
		{rt + "StartContainer"},
	} {
		var tree map[string]collector.Span
		eventually(t, "the spans of a call", func() bool { tree = spanTree(c, trace(i)); return len(tree) >= len(want) && complete(tree) })
		for _, at := range want {
			s, ok := tree[at]
			if !ok {
				t.Errorf("trace %d has no %q, but %q", i, at, keysOf(tree))
			}
			if failed := i == 4; failed != strings.Contains(s.Failed, "not created") {
				t.Errorf("%q failed with %q", at, s.Failed)
			}
		}
	}
	if got := spanTree(c, trace(1))[rt+"RunPodSandbox > run pod > attach network > plugin bridge ADD"].Labels["cni.command"]; got != "ADD" {
		t.Errorf("the plugin was called for %q", got)
	}
	testTraceOutlivesCall(t, n, c, cni, trace(5))
	for _, s := range c.Spans() {
		if !strings.HasPrefix(s.Trace, trace(0)[:30]) {
			t.Errorf("%q is in trace %s, which nobody asked for", s.Name, s.Trace)
		}
	}
}

// testTraceOutlivesCall expects what was done after the client had given up.
func testTraceOutlivesCall(t *testing.T, n *node, c *collector.Collector, cni plugin, trace string) {
	cni.set(t, "hold-ADD")
	cfg := n.podConfig(t)
	cfg.Metadata.Name = "late"
	_, err := inTrace(t, func(ctx context.Context, q *runtimeapi.RunPodSandboxRequest, o ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return n.Runtime.RunPodSandbox(ctx, q, o...)
	}, trace, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err == nil {
		t.Error("a pod runs without a network")
	}
	cni.clear("hold-ADD")
	p := n.podOf(t, cfg) // joins the operation

	const call = "RuntimeService/RunPodSandbox"
	var tree map[string]collector.Span
	eventually(t, "the end of the operation", func() bool {
		tree = spanTree(c, trace)
		_, ok := tree[call+" > run pod"]
		return ok
	})
	if got := tree[call+" > run pod > attach network > plugin bridge ADD"]; got.Name == "" || got.Failed != "" || tree[call].Failed == "" || tree[call+" > run pod"].Took < tree[call].Took {
		t.Errorf("the spans are %q", keysOf(tree))
	}
	p.remove(t)
}

// complete reports whether the span of a call has arrived, which ends last.
func complete(tree map[string]collector.Span) bool {
	for at := range tree {
		if strings.Contains(at, "Service/") && !strings.Contains(at, " > ") {
			return true
		}
	}
	return false
}

func keysOf(tree map[string]collector.Span) []string {
	var list []string
	for at := range tree {
		list = append(list, at)
	}
	return list
}
