package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	nothing = "registry.k8s.io/none:1"

	callTime = time.Minute // none takes nearly as long
	taken    = 8080        // a port of the node
	// workers have at most one pod at a time, of pauses calls.
	workers, pauses = 12, 12
)

// errExpected means that what had to fail has succeeded.
var errExpected = errors.New("a call that has to be refused was not")

// load is what happens on a node where all goes on at once: pods come and go, are
// probed, crash, run out of memory and are refused; images are pulled and removed.
type load struct {
	node   *lab.Lab
	during time.Duration
	pods   atomic.Int64 // so far, for their names
}

func newLoad(node *lab.Lab, during time.Duration) *load { return &load{node: node, during: during} }

// run runs the load until its time is over, or something fails that should not.
func (l *load) run(ctx context.Context) error {
	if err := l.pull(ctx, busybox); err != nil {
		return err
	}
	during, cancel := context.WithTimeout(ctx, l.during)
	defer cancel()

	all, during := errgroup.WithContext(during)
	repeat := func(pause time.Duration, do func(context.Context) error) {
		all.Go(func() error {
			// What is under way at the end is brought to its own.
			for sleep(during, pause) {
				if err := do(context.WithoutCancel(during)); err != nil {
					return err
				}
			}
			return nil
		})
	}

	repeat(time.Second, l.look)
	repeat(7*time.Second, l.images)
	repeat(5*time.Second, l.crash)
	repeat(17*time.Second, l.exhaust)
	repeat(13*time.Second, l.refuse)
	for i := range workers {
		all.Go(func() error { return l.work(during, i) })
	}
	return errors.Join(all.Wait(), ctx.Err())
}

// work keeps a pod most of the time. The workers begin and end one after the other.
func (l *load) work(ctx context.Context, i int) error {
	first := time.Duration(i) * l.during / 2 / workers
	ctx, cancel := context.WithTimeout(ctx, first+l.during/2)
	defer cancel()
	if !sleep(ctx, first) {
		return nil
	}

	for ctx.Err() == nil {
		err := l.pod(context.WithoutCancel(ctx), nil, func(pod string) error {
			return errors.Join(l.serve(ctx, pod, "main", i), l.serve(ctx, pod, "sidecar", i))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// serve runs a container that ends when it is told to, until it was probed.
func (l *load) serve(ctx context.Context, pod, name string, i int) error {
	c, err := l.start(ctx, pod, name, nil, "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
	if err != nil {
		return err
	}
	if err := l.probe(ctx, c, i); err != nil {
		return err
	}
	_, err = call(context.WithoutCancel(ctx), l.node.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 10})
	return err
}

// probe runs a command in a container, as often as kubelet does in a minute.
func (l *load) probe(ctx context.Context, container string, i int) error {
	for range pauses/2 + i%3 {
		r, err := call(context.WithoutCancel(ctx), l.node.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 10})
		if err != nil {
			return err
		}
		if r.ExitCode != 0 {
			return fmt.Errorf("a probe exited with code %d", r.ExitCode)
		}
		sleep(ctx, 700*time.Millisecond)
	}
	return nil
}

// look asks what kubelet asks all the time.
func (l *load) look(ctx context.Context) error {
	_, err := call(ctx, l.node.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err == nil {
		_, err = call(ctx, l.node.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
	}
	if err == nil {
		_, err = call(ctx, l.node.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{})
	}
	return err
}

// images pulls one that there is, removes it, and pulls one that there is not.
func (l *load) images(ctx context.Context) error {
	if err := l.pull(ctx, nginx); err != nil {
		return err
	}
	sleep(ctx, 3*time.Second)
	if _, err := call(ctx, l.node.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}}); err != nil {
		return err
	}
	if l.pull(ctx, nothing) == nil {
		return fmt.Errorf("pull %s: %w", nothing, errExpected)
	}
	return nil
}

func (l *load) pull(ctx context.Context, image string) error {
	_, err := call(ctx, l.node.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return err
}

// crash runs a program that fails.
func (l *load) crash(ctx context.Context) error {
	return l.pod(ctx, nil, func(pod string) error { return l.end(ctx, pod, nil, "sh", "-c", "sleep 1; exit 3") })
}

// exhaust runs a program that takes more memory than it may.
func (l *load) exhaust(ctx context.Context) error {
	limit := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	return l.pod(ctx, nil, func(pod string) error { return l.end(ctx, pod, limit, "tail", "/dev/zero") })
}

// refuse runs two pods on one port of the node.
func (l *load) refuse(ctx context.Context) error {
	port := []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: taken}}
	return l.pod(ctx, port, func(string) error {
		if l.pod(ctx, port, func(string) error { return nil }) == nil {
			return fmt.Errorf("a second pod on a port: %w", errExpected)
		}
		return nil
	})
}

// pod runs a pod as long as do lasts.
func (l *load) pod(ctx context.Context, ports []*runtimeapi.PortMapping, do func(id string) error) (err error) {
	name := fmt.Sprintf("pod-%d", l.pods.Add(1))
	r, err := call(ctx, l.node.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "load", Uid: name},
		LogDirectory: filepath.Join(l.node.Dir, "logs", name),
		PortMappings: ports,
	}})
	if err != nil {
		return err
	}

	defer func() {
		_, stopped := call(ctx, l.node.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId})
		_, removed := call(ctx, l.node.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
		err = errors.Join(err, stopped, removed)
	}()
	return do(r.PodSandboxId)
}

// start starts a container of a pod.
func (l *load) start(ctx context.Context, pod, name string, limits *runtimeapi.LinuxContainerResources, command ...string) (string, error) {
	ctx = context.WithoutCancel(ctx)
	r, err := call(ctx, l.node.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: busybox},
			Command:  command,
			LogPath:  name + ".log",
			Linux:    &runtimeapi.LinuxContainerConfig{Resources: limits},
		},
		SandboxConfig: &runtimeapi.PodSandboxConfig{},
	})
	if err != nil {
		return "", err
	}
	_, err = call(ctx, l.node.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId})
	return r.ContainerId, err
}

// end starts a container and waits until it has exited.
func (l *load) end(ctx context.Context, pod string, limits *runtimeapi.LinuxContainerResources, command ...string) error {
	id, err := l.start(ctx, pod, "main", limits, command...)
	if err != nil {
		return err
	}
	for range int(callTime / time.Second) {
		r, err := call(ctx, l.node.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil || r.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return err
		}
		sleep(ctx, time.Second)
	}
	return fmt.Errorf("%q does not end", command)
}

// call makes a call, in bounded time.
func call[Q, A any](ctx context.Context, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return f(ctx, request)
}

// sleep reports whether ctx outlasted the time.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
