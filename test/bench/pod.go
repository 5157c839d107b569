package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/cgroup"
)

// callTime is after how long a call fails. It is long, since no runtime should fail
// for being slow.
const callTime = 10 * time.Minute

// client runs pods on a target and records the times of its calls.
type client struct {
	*target
	image   string
	cgroups *podCgroups // nil if the runtime chooses the cgroup
	record  func(call string, took time.Duration)
	// shape, if set, modifies the pod and its container.
	shape func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig)
}

// pod is a running pod with one container.
type pod struct {
	config        *runtimeapi.PodSandboxConfig
	id, container string
	group         *cgroup.Group // its own, or nil
}

// timed makes a call and records how long it took, if it succeeded.
func (c *client) timed(ctx context.Context, call string, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	began := time.Now()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %s: %w", c.name, call, err)
	}
	c.record(call, time.Since(began))
	return nil
}

// start runs a pod with a container that exits on SIGTERM. After an error the pod
// has the IDs of what was created.
func (c *client) start(ctx context.Context, name string) (*pod, error) {
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	p := &pod{config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: fmt.Sprintf("%s-%d", name, os.Getpid()), Namespace: "bench"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}}

	container := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: c.image},
		Command:  []string{"sh", "-c", "trap 'exit 0' TERM; touch /ready; sleep 100000 & wait"},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces},
		},
	}

	if c.shape != nil {
		c.shape(p.config, container)
	}
	if c.cgroups != nil {
		group, err := c.cgroups.make(ctx, name)
		if err != nil {
			return p, err
		}
		p.group, p.config.Linux.CgroupParent = group, group.Path()
	}

	return p, c.timed(ctx, "pod ready", func(ctx context.Context) error { return c.makeReady(ctx, p, container) })
}

// makeReady makes the three calls that start a pod.
func (c *client) makeReady(ctx context.Context, p *pod, container *runtimeapi.ContainerConfig) error {
	err := c.timed(ctx, "RunPodSandbox", func(ctx context.Context) error {
		r, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
		p.id = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return err
	}

	err = c.timed(ctx, "CreateContainer", func(ctx context.Context) error {
		r, err := c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: container, SandboxConfig: p.config})
		p.container = r.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}

	return c.timed(ctx, "StartContainer", func(ctx context.Context) error {
		_, err := c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
		return err
	})
}

// awaitTrap waits until the container handles SIGTERM: before its shell has set the
// trap, the first process of a PID namespace ignores the signal.
func (c *client) awaitTrap(ctx context.Context, p *pod) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for {
		r, err := c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"test", "-e", "/ready"}})
		if err != nil {
			return fmt.Errorf("%s: ExecSync: %w", c.name, err)
		}
		if r.ExitCode == 0 {
			return nil
		}
	}
}

// execSync measures a command.
func (c *client) execSync(ctx context.Context, p *pod) error {
	return c.timed(ctx, "ExecSync", func(ctx context.Context) error { return c.execute(ctx, p, "true") })
}

// execute runs a command that must succeed.
func (c *client) execute(ctx context.Context, p *pod, command ...string) error {
	return wantSuccess(c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: command}))
}

// wantSuccess turns a command's exit code into an error.
func wantSuccess(r *runtimeapi.ExecSyncResponse, err error) error {
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	return err
}

// execStream measures a command over the streaming server, including the
// connection.
func (c *client) execStream(ctx context.Context, p *pod) error {
	return c.timed(ctx, "Exec (streaming)", func(ctx context.Context) error {
		r, err := c.runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.container, Cmd: []string{"true"}, Stdout: true})
		if err != nil {
			return err
		}

		u, err := url.Parse(r.Url)
		if err != nil {
			return err
		}

		session, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
		if err != nil {
			return err
		}
		return session.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard})
	})
}

// remove removes as much of a pod as exists.
func (c *client) remove(ctx context.Context, p *pod) error {
	const grace = 10
	var errs []error
	if p.container != "" {
		errs = append(errs, c.timed(ctx, "StopContainer", func(ctx context.Context) error {
			_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: grace})
			return err
		}), c.timed(ctx, "RemoveContainer", func(ctx context.Context) error {
			_, err := c.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.container})
			return err
		}))
	}
	return errors.Join(append(errs, c.removePod(ctx, p))...)
}

// removePod removes a pod with its containers.
func (c *client) removePod(ctx context.Context, p *pod) error {
	if p.id != "" {
		err := errors.Join(c.timed(ctx, "StopPodSandbox", func(ctx context.Context) error {
			_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}), c.timed(ctx, "RemovePodSandbox", func(ctx context.Context) error {
			_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		}))
		if err != nil {
			return err
		}
	}
	if p.group == nil {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return p.group.Remove(ctx)
}
