package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

func TestNode(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "version", func(t *testing.T) {
		v := call(t, n.Runtime.Version, &runtimeapi.VersionRequest{})
		if v.Version != "0.1.0" || v.RuntimeApiVersion != "v1" || v.RuntimeName != "crisp" || !regexp.MustCompile(`^\d+\.\d+\.\d+`).MatchString(v.RuntimeVersion) {
			t.Errorf("got %v", v)
		}
	})

	n.run(t, "status", func(t *testing.T) {
		st := call(t, n.Runtime.Status, &runtimeapi.StatusRequest{Verbose: true})
		for _, kind := range []string{runtimeapi.RuntimeReady, runtimeapi.NetworkReady} {
			if !slices.ContainsFunc(st.Status.Conditions, func(c *runtimeapi.RuntimeCondition) bool { return c.Type == kind && c.Status }) {
				t.Errorf("%s is not true: %v", kind, st.Status.Conditions)
			}
		}

		if !slices.ContainsFunc(st.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == "" && h.Features.GetUserNamespaces() }) {
			t.Errorf("there is no default handler with user namespaces: %v", st.RuntimeHandlers)
		}
		if f := st.Features; !f.GetSupplementalGroupsPolicy() || !f.GetMountOptions() {
			t.Errorf("the features are %v", f)
		}

		if st.Info["config"] == "" || st.Info["cni"] == "" {
			t.Errorf("the verbose status has %d fields", len(st.Info))
		}
	})

	n.run(t, "configuration", func(t *testing.T) {
		cidr := &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.1.0.0/24"}}
		call(t, n.Runtime.UpdateRuntimeConfig, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: cidr})
		if call(t, n.Runtime.RuntimeConfig, &runtimeapi.RuntimeConfigRequest{}).GetLinux() == nil {
			t.Error("the cgroup driver is not reported")
		}
	})

	n.run(t, "streams equal lists", func(t *testing.T) { testStreamsEqualLists(t, n) })
	n.run(t, "filters", func(t *testing.T) { testFilters(t, n) })
	n.run(t, "events", func(t *testing.T) { testEvents(t, n) })
}

// receive collects the items of a stream of responses.
func receive[Q, A, I any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (grpc.ServerStreamingClient[A], error), request Q, items func(*A) []I) []I {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(callTime))
	defer cancel()
	stream, err := f(ctx, request)
	if err != nil {
		t.Fatal(err)
	}

	var all []I
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, items(answer)...)
	}
}

// keys makes lists comparable.
func keys[I any](items []I, key func(I) string) string {
	var all []string
	for _, i := range items {
		all = append(all, key(i))
	}
	return strings.Join(all, "\n")
}

func testStreamsEqualLists(t *testing.T, n *node) {
	for i := range 3 {
		p := n.pod(t, attempt(uint32(i)))
		p.start(t, named("a"))
		p.create(t, named("b"))
	}

	pods := func(p *runtimeapi.PodSandbox) string { return fmt.Sprint(p) }
	containers := func(c *runtimeapi.Container) string { return fmt.Sprint(c) }
	podStats := func(s *runtimeapi.PodSandboxStats) string { return s.Attributes.Id }
	containerStats := func(s *runtimeapi.ContainerStats) string { return s.Attributes.Id }
	metrics := func(m *runtimeapi.PodSandboxMetrics) string {
		return fmt.Sprintf("%s %d %d", m.PodSandboxId, len(m.Metrics), len(m.ContainerMetrics))
	}

	images := func(i *runtimeapi.Image) string { return fmt.Sprint(i) }
	for name, got := range map[string][2]string{
		"pods": {
			keys(call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items, pods),
			keys(receive(t, n.Runtime.StreamPodSandboxes, &runtimeapi.StreamPodSandboxesRequest{}, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes), pods),
		},
		"containers": {
			keys(call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers, containers),
			keys(receive(t, n.Runtime.StreamContainers, &runtimeapi.StreamContainersRequest{}, (*runtimeapi.StreamContainersResponse).GetContainers), containers),
		},
		"images": {
			keys(call(t, n.Images.ListImages, &runtimeapi.ListImagesRequest{}).Images, images),
			keys(receive(t, n.Images.StreamImages, &runtimeapi.StreamImagesRequest{}, (*runtimeapi.StreamImagesResponse).GetImages), images),
		},
		"statistics of pods": {
			keys(call(t, n.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{}).Stats, podStats),
			keys(receive(t, n.Runtime.StreamPodSandboxStats, &runtimeapi.StreamPodSandboxStatsRequest{}, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats), podStats),
		},
		"statistics of containers": {
			keys(call(t, n.Runtime.ListContainerStats, &runtimeapi.ListContainerStatsRequest{}).Stats, containerStats),
			keys(receive(t, n.Runtime.StreamContainerStats, &runtimeapi.StreamContainerStatsRequest{}, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats), containerStats),
		},
		"metrics": {
			keys(call(t, n.Runtime.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{}).PodMetrics, metrics),
			keys(receive(t, n.Runtime.StreamPodSandboxMetrics, &runtimeapi.StreamPodSandboxMetricsRequest{}, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics), metrics),
		},
	} {
		if got[0] != got[1] || got[0] == "" {
			t.Errorf("%s: listed are\n%s\nstreamed are\n%s", name, got[0], got[1])
		}
	}
}

func testFilters(t *testing.T, n *node) {
	a, b := n.pod(t), n.pod(t, attempt(1), func(c *runtimeapi.PodSandboxConfig) { c.Labels["colour"] = "blue" })
	call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.id})
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	blue := map[string]string{"colour": "blue", "test": "filters"}
	for name, c := range map[string]struct {
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		"none":             {&runtimeapi.PodSandboxFilter{}, []string{b.id, a.id}}, // newest first
		"id":               {&runtimeapi.PodSandboxFilter{Id: a.id}, []string{a.id}},
		"prefix":           {&runtimeapi.PodSandboxFilter{Id: b.id[:10]}, []string{b.id}},
		"state":            {&runtimeapi.PodSandboxFilter{State: ready}, []string{a.id}},
		"labels":           {&runtimeapi.PodSandboxFilter{LabelSelector: blue}, []string{b.id}},
		"labels and state": {&runtimeapi.PodSandboxFilter{LabelSelector: blue, State: ready}, nil},
	} {
		var got []string
		for _, p := range call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{Filter: c.filter}).Items {
			got = append(got, p.Id)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("filter by %s: got %q, want %q", name, got, c.want)
		}
	}

	if got := call(t, n.Images.ListImages, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: busybox}}}).Images; len(got) != 1 {
		t.Errorf("filtered by its name, %d images are busybox", len(got))
	}
}

// testEvents follows the life of a pod.
func testEvents(t *testing.T, n *node) {
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(callTime))
	defer cancel()
	stream, err := n.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}

	// The subscription is active when the first event arrives.
	arrived := make(chan *runtimeapi.ContainerEventResponse, 100)
	go func() {
		defer close(arrived)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			arrived <- e
		}
	}()

	eventually(t, "events arrive", func() bool {
		probe := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "probe" })
		probe.remove(t)
		return len(arrived) > 0
	})

	p := n.pod(t)
	c := p.start(t, sh("exit 3"))
	c.wait(t)
	c.remove(t)
	p.remove(t)
	var got []string
	for e := range arrived {
		md := e.PodSandboxStatus.GetMetadata()
		if md.GetName() == "probe" {
			continue
		}

		who := map[string]string{p.id: "pod", c.id: "container"}[e.ContainerId]
		kind := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		got = append(got, who+" "+kind)
		if md.GetUid() != p.cfg.Metadata.Uid || e.CreatedAt == 0 {
			t.Errorf("event %s comes with %v", got[len(got)-1], e)
		}
		if kind == "stopped" && who == "container" && (len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].ExitCode != 3) {
			t.Errorf("the container's end comes with %v", e.ContainersStatuses)
		}
		if who == "pod" && kind == "deleted" {
			break
		}
	}

	want := []string{
		"pod created", "pod started", "container created", "container started",
		"container stopped", "container deleted", "pod stopped", "pod deleted",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the events are %q, want %q", got, want)
	}
}

// TestEventsEnd stops the daemon while a client reads events, which must not
// block it.
func TestEventsEnd(t *testing.T) {
	n := newNode(t, lab.Options{})
	stream, err := n.Runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) && status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want the end", err)
	}
	n.begin(t)
}
