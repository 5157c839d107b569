package e2e

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crisp/test/testkit/lab"
)

// rpc is a call by a name that [rpcs] has.
type rpc func(id string) error

// rpcs are all calls that name a sandbox, container or image, or filter by one.
func (n *node) rpcs(t *testing.T) map[string]rpc {
	r, i := n.Runtime, n.Images
	image := func(id string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: id} }
	container := func(id string) *runtimeapi.ContainerStatsFilter {
		return &runtimeapi.ContainerStatsFilter{Id: id}
	}

	cfg := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "x"}, Image: image(busybox)}
	return map[string]rpc{
		"StopPodSandbox": func(id string) error {
			return failure(t, r.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		},
		"RemovePodSandbox": func(id string) error {
			return failure(t, r.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		},
		"PodSandboxStatus": func(id string) error {
			return failure(t, r.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		},
		"PodSandboxStats": func(id string) error {
			return failure(t, r.PodSandboxStats, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
		},
		"UpdatePodSandboxResources": func(id string) error {
			return failure(t, r.UpdatePodSandboxResources, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id})
		},
		"PortForward": func(id string) error {
			return failure(t, r.PortForward, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: []int32{80}})
		},
		"CreateContainer": func(id string) error {
			return failure(t, r.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: cfg})
		},
		"CheckpointPod": func(id string) error {
			return failure(t, r.CheckpointPod, &runtimeapi.CheckpointPodRequest{PodSandboxId: id})
		},
		"RestorePod": func(string) error { return failure(t, r.RestorePod, &runtimeapi.RestorePodRequest{}) },
		"ListPodSandbox": func(id string) error {
			return failure(t, r.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: id}})
		},
		"ListPodSandboxStats": func(id string) error {
			return failure(t, r.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: id}})
		},

		"StartContainer": func(id string) error {
			return failure(t, r.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: id})
		},
		"StopContainer": func(id string) error {
			return failure(t, r.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: id})
		},
		"RemoveContainer": func(id string) error {
			return failure(t, r.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		},
		"ContainerStatus": func(id string) error {
			return failure(t, r.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		},
		"ContainerStats": func(id string) error {
			return failure(t, r.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: id})
		},
		"UpdateContainerResources": func(id string) error {
			return failure(t, r.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
		},
		"ReopenContainerLog": func(id string) error {
			return failure(t, r.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		},
		"ExecSync": func(id string) error {
			return failure(t, r.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
		},
		"Exec": func(id string) error {
			return failure(t, r.Exec, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
		},
		"Attach": func(id string) error {
			return failure(t, r.Attach, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
		},
		"CheckpointContainer": func(id string) error {
			return failure(t, r.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: id})
		},
		"ListContainers": func(id string) error {
			return failure(t, r.ListContainers, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
		},
		"ListContainerStats": func(id string) error {
			return failure(t, r.ListContainerStats, &runtimeapi.ListContainerStatsRequest{Filter: container(id)})
		},

		"ImageStatus": func(id string) error {
			return failure(t, i.ImageStatus, &runtimeapi.ImageStatusRequest{Image: image(id)})
		},
		"ListImages": func(id string) error {
			return failure(t, i.ListImages, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: image(id)}})
		},
		"RemoveImage": func(id string) error {
			return failure(t, i.RemoveImage, &runtimeapi.RemoveImageRequest{Image: image(id)})
		},
		"PullImage": func(id string) error { return failure(t, i.PullImage, &runtimeapi.PullImageRequest{Image: image(id)}) },
	}
}

// failure makes a call for its error.
func failure[Q, A any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) error {
	t.Helper()
	_, err := try(t, f, request)
	return err
}

// wantCode checks the code of an error and that it has a text.
func wantCode(t *testing.T, err error, code codes.Code, parts ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("got code %v, want %v: %v", got, code, err)
	}
	for _, part := range parts {
		if !strings.Contains(status.Convert(err).Message(), part) {
			t.Errorf("got %q, which does not say %q", status.Convert(err).Message(), part)
		}
	}
}

// unnamed are the calls without an ID, so that none can be unknown.
var unnamed = []string{
	"Version", "Status", "RuntimeConfig", "UpdateRuntimeConfig", "ImageFsInfo", "RunPodSandbox",
	"ListMetricDescriptors", "ListPodSandboxMetrics",
}

func TestCodes(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "unknown", func(t *testing.T) { testUnknown(t, n) })
	n.run(t, "state", func(t *testing.T) { testWrongState(t, n) })
	n.run(t, "invalid", func(t *testing.T) { testInvalid(t, n) })
	n.run(t, "registry", func(t *testing.T) {
		err := n.rpcs(t)["PullImage"]("127.0.0.1:1/nobody/listens:1")
		wantCode(t, err, codes.Unknown)
		if text := status.Convert(err).Message(); !strings.HasPrefix(text, crierrors.ErrRegistryUnavailable.Error()) {
			t.Errorf("the error does not begin with the token that kubelet looks for: %s", text)
		}
	})
}

// testUnknown covers every call of the interface with an ID.
func testUnknown(t *testing.T, n *node) {
	want := map[string]codes.Code{
		"PodSandboxStatus": codes.NotFound, "PodSandboxStats": codes.NotFound, "UpdatePodSandboxResources": codes.NotFound,
		"PortForward": codes.NotFound, "CreateContainer": codes.NotFound,
		"StartContainer": codes.NotFound, "ContainerStatus": codes.NotFound, "ContainerStats": codes.NotFound,
		"UpdateContainerResources": codes.NotFound, "ReopenContainerLog": codes.NotFound,
		"ExecSync": codes.NotFound, "Exec": codes.NotFound, "Attach": codes.NotFound,
		"CheckpointContainer": codes.NotFound, "CheckpointPod": codes.NotFound, "RestorePod": codes.InvalidArgument,
	}

	rpcs := n.rpcs(t)
	for _, name := range unnamed {
		rpcs[name] = nil
	}

	pull := rpcs["PullImage"]
	rpcs["PullImage"] = nil // it requires the name of a registry
	t.Run("PullImage", func(t *testing.T) { wantCode(t, pull(n.Registry.Addr+"/nothing:1"), codes.NotFound, "/nothing") })
	for _, methods := range [][]grpc.MethodDesc{runtimeapi.RuntimeService_ServiceDesc.Methods, runtimeapi.ImageService_ServiceDesc.Methods} {
		for _, m := range methods {
			if _, ok := rpcs[m.MethodName]; !ok {
				t.Errorf("%s is not tested", m.MethodName)
			}
		}
	}

	for name, do := range rpcs {
		if do != nil {
			t.Run(name, func(t *testing.T) { wantCode(t, do("0123456789abcdef"), want[name]) }) // OK if not in the table
		}
	}

	t.Run("status of a missing image", func(t *testing.T) {
		if r := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "nothing:1"}}); r.Image != nil {
			t.Errorf("got %v, want nil", r.Image)
		}
	})
}

// testWrongState makes calls that an object's state does not allow.
func testWrongState(t *testing.T, n *node) {
	rpcs := n.rpcs(t)
	p := n.pod(t)
	created, running, exited := p.create(t, named("created")), p.start(t, named("running")), p.start(t, named("exited"), sh("exit 0"))
	exited.wait(t)

	stopped := n.pod(t, attempt(1))
	orphan := stopped.create(t)
	call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.id})
	for _, c := range []struct {
		state, id string
		refused   []string
		fine      []string
	}{
		{"created", created.id, []string{"ExecSync", "Exec", "Attach", "ReopenContainerLog"}, []string{"StopContainer", "UpdateContainerResources", "ContainerStats"}},
		{"running", running.id, []string{"StartContainer"}, []string{"ExecSync", "Exec", "Attach", "ReopenContainerLog", "UpdateContainerResources", "ContainerStats"}},
		{"exited", exited.id, []string{"StartContainer", "ExecSync", "Exec", "Attach", "ReopenContainerLog", "UpdateContainerResources"}, []string{"StopContainer"}},
		{"in a stopped pod", orphan.id, []string{"StartContainer"}, []string{"StopContainer", "RemoveContainer", "RemoveContainer"}},
		{"stopped pod", stopped.id, []string{"CreateContainer", "PortForward"}, []string{"StopPodSandbox", "PodSandboxStatus", "PodSandboxStats"}},
	} {
		for _, name := range c.refused {
			t.Run(c.state+" "+name, func(t *testing.T) { wantCode(t, rpcs[name](c.id), codes.FailedPrecondition, c.id) })
		}
		for _, name := range c.fine {
			t.Run(c.state+" "+name, func(t *testing.T) { wantCode(t, rpcs[name](c.id), codes.OK) })
		}
	}
}

// testInvalid makes calls that are invalid in any state.
func testInvalid(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t)
	create := func(change change) error {
		cfg := p.config(named("invalid"), change)
		return failure(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg})
	}

	exec := func(r *runtimeapi.ExecRequest) error {
		r.ContainerId = c.id
		return failure(t, n.Runtime.Exec, r)
	}

	runPod := func(change func(*runtimeapi.RunPodSandboxRequest)) error {
		r := &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(t)}
		change(r)
		return failure(t, n.Runtime.RunPodSandbox, r)
	}

	for name, err := range map[string]error{
		"pod without metadata":        runPod(func(r *runtimeapi.RunPodSandboxRequest) { r.Config.Metadata = nil }),
		"pod without a configuration": runPod(func(r *runtimeapi.RunPodSandboxRequest) { r.Config = nil }),
		"unknown runtime handler":     runPod(func(r *runtimeapi.RunPodSandboxRequest) { r.RuntimeHandler = "nope" }),
		"pod with a sysctl of the node": runPod(func(r *runtimeapi.RunPodSandboxRequest) {
			r.Config.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}),
		"container without metadata": create(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }),
		"container without image":    create(func(c *runtimeapi.ContainerConfig) { c.Image = nil }),
		"log path that leads out":    create(func(c *runtimeapi.ContainerConfig) { c.LogPath = "../x.log" }),
		"relative mount":             create(mount("/tmp", "tmp")),
		"privileged in an ordinary pod": create(func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Privileged = true
		}),
		"exec without a command":     exec(&runtimeapi.ExecRequest{Stdout: true}),
		"exec without streams":       exec(&runtimeapi.ExecRequest{Cmd: []string{"true"}}),
		"terminal and stderr":        exec(&runtimeapi.ExecRequest{Cmd: []string{"true"}, Tty: true, Stdin: true, Stdout: true, Stderr: true}),
		"execsync without a command": failure(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id}),
		"attach without streams":     failure(t, n.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: c.id}),
		"empty container id":         failure(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{}),
		"empty sandbox id":           failure(t, n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{}),
		"image reference":            n.rpcs(t)["PullImage"]("Not A Reference"),
		"pull for an unknown handler": failure(t, n.Images.PullImage, &runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: busybox, RuntimeHandler: "nope"},
		}),
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, err, codes.InvalidArgument) })
	}

	t.Run("missing image", func(t *testing.T) {
		wantCode(t, create(image("nothing:1")), codes.NotFound, "nothing:1")
	})
	if left := call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers; len(left) != 1 {
		t.Errorf("%d containers are there, want the one that was right", len(left))
	}
}
