package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// bencher drives a runtime and keeps the times.
type bencher struct {
	opt     options
	lab     *lab.Lab // nil for a runtime that was there
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	calls   []string // in the order of their first use
	times   map[string][]time.Duration
}

// pod is a running pod with one container.
type pod struct {
	config        *runtimeapi.PodSandboxConfig
	id, container string
}

func (b *bencher) run(ctx context.Context) error {
	b.times = map[string][]time.Duration{}
	image := &runtimeapi.ImageSpec{Image: b.opt.image}
	if _, err := b.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image}); err != nil {
		return fmt.Errorf("pull %s: %w", b.opt.image, err)
	}
	const warmUp = 3
	for i := range warmUp + b.opt.samples {
		if i == warmUp {
			clear(b.times)
		}
		p, err := b.start(ctx, i)
		if err == nil {
			err = b.exec(ctx, p)
		}
		if err := errors.Join(err, b.remove(context.WithoutCancel(ctx), p)); err != nil {
			return err
		}
		if b.lab != nil {
			if err := b.floor(ctx); err != nil {
				return err
			}
		}
	}
	b.print()
	if b.opt.density > 0 {
		return b.density(ctx)
	}
	return nil
}

// timed makes a call and keeps how long it took.
func (b *bencher) timed(call string, do func() error) error {
	if !slices.Contains(b.calls, call) {
		b.calls = append(b.calls, call)
	}
	began := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	b.times[call] = append(b.times[call], time.Since(began))
	return nil
}

// start runs a pod with a container that ends when it is told to. On an error
// the pod has what was made so far.
func (b *bencher) start(ctx context.Context, n int) (*pod, error) {
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	p := &pod{config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprintf("bench-%d", n), Uid: fmt.Sprintf("bench-%d-%d", os.Getpid(), n), Namespace: "bench"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    b.opt.cgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}}
	container := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: b.opt.image},
		Command:  []string{"sh", "-c", "trap 'exit 0' TERM; touch /ready; sleep 100000 & wait"},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces},
		},
	}
	err := b.timed("RunPodSandbox", func() error {
		r, err := b.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
		p.id = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return p, err
	}
	err = b.timed("CreateContainer", func() error {
		r, err := b.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: container, SandboxConfig: p.config})
		p.container = r.GetContainerId()
		return err
	})
	if err != nil {
		return p, err
	}
	return p, b.timed("StartContainer", func() error {
		_, err := b.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
		return err
	})
}

// exec measures a command, once the container is ready for the signal to end:
// before its shell has set the trap, the first process of a namespace ignores it.
func (b *bencher) exec(ctx context.Context, p *pod) error {
	for ready := false; !ready; {
		r, err := b.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"test", "-e", "/ready"}})
		if err != nil {
			return fmt.Errorf("ExecSync: %w", err)
		}
		ready = r.ExitCode == 0
	}
	return b.timed("ExecSync true", func() error {
		r, err := b.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
		}
		return err
	})
}

// remove removes what there is of a pod.
func (b *bencher) remove(ctx context.Context, p *pod) error {
	if p.id == "" {
		return nil
	}
	const grace = 10
	steps := map[string]func() error{
		"StopContainer": func() error {
			_, err := b.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: grace})
			return err
		},
		"RemoveContainer": func() error {
			_, err := b.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.container})
			return err
		},
		"StopPodSandbox": func() error {
			_, err := b.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := b.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		},
	}
	var errs []error
	for _, call := range []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"} {
		if p.container == "" && strings.HasSuffix(call, "Container") {
			continue
		}
		errs = append(errs, b.timed(call, steps[call]))
	}
	return errors.Join(errs...)
}

// print prints the median and the tail of every call in milliseconds.
func (b *bencher) print() {
	fmt.Printf("%-18s %8s %8s %8s   n=%d, ms\n", "", "p50", "p90", "max", b.opt.samples)
	for _, call := range b.calls {
		t := b.times[call]
		slices.Sort(t)
		at := func(q float64) float64 { return t[int(q*float64(len(t)-1))].Seconds() * 1000 }
		fmt.Printf("%-18s %8.1f %8.1f %8.1f\n", call, at(0.5), at(0.9), at(1))
	}
}

// density runs many pods at once and shows what the runtime needs for them.
func (b *bencher) density(ctx context.Context) (err error) {
	var pods []*pod
	defer func() {
		for _, p := range pods {
			err = errors.Join(err, b.remove(context.WithoutCancel(ctx), p))
		}
	}()
	before := b.processes()
	for i := range b.opt.density {
		p, err := b.start(ctx, b.opt.samples+100+i)
		pods = append(pods, p)
		if err == nil {
			err = b.exec(ctx, p)
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("\n%d pods of one container, resident memory in KiB\n", b.opt.density)
	for name, rss := range b.processes() {
		fmt.Printf("%-14s %6d, without pods %6d\n", name, rss, before[name])
	}
	return nil
}

// processes is the resident memory in KiB of the programs below this one that
// are the runtime's, by name.
func (b *bencher) processes() map[string]int {
	rss := map[string]int{}
	for _, p := range inventory.Descendants(os.Getpid()) {
		if !strings.HasPrefix(p.Name, "crisp") {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(data), "VmRSS:")
		var kib int
		if _, err := fmt.Sscan(after, &kib); err == nil {
			rss[p.Name] += kib
		}
	}
	return rss
}
