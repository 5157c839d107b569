package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// starters is how many pods are started concurrently.
const starters = 16

// networked is the number of pods that have a network of their own. Pods beyond it
// use the node's: the plugins would take longer than everything that is measured.
const networked = 100

// sizes are the numbers of pods at which growth is measured, those beyond
// [networked] only in the last round.
var sizes = [...]int{0, 1, 10, 100, 300, 500}

// grown is a runtime with more and more pods.
type grown struct {
	*bench
	t     *target
	phase string
	round int
	// networked is the number of pods that have a network of their own, those
	// beyond it use the node's. oneCgroup leaves the parent of the pods' cgroups to
	// the runtime, which puts all of them into the same.
	networked int
	oneCgroup bool

	pods   []*pod
	kernel int // the kernel's memory without pods, in KiB
}

// growth measures a runtime with more and more pods: memory, latency of reads, CPU,
// time of a restart.
func (b *bench) growth(ctx context.Context, t *target, round int) (err error) {
	g := &grown{bench: b, t: t, phase: "growth", round: round, networked: networked}
	defer func() { err = errors.Join(err, g.shrink(context.WithoutCancel(ctx))) }()
	for _, size := range sizes {
		if size > b.opt.most || size > networked && round < b.rounds("growth")-1 {
			break
		}
		err := g.growTo(ctx, size)
		if err == nil {
			err = g.burden(ctx)
		}
		if err != nil {
			return fmt.Errorf("%d pods: %w", size, err)
		}
	}

	return nil
}

// growTo starts pods until there are size.
func (g *grown) growTo(ctx context.Context, size int) error {
	from, names := len(g.pods), g.names(size-len(g.pods))
	g.pods = append(g.pods, make([]*pod, len(names))...)
	c := g.quiet()
	if size > g.networked {
		c.shape = onNodeNetwork
	}
	return together(starters, len(names), func(i int) (err error) {
		g.pods[from+i], err = c.start(ctx, names[i])
		return err
	})
}

// onNodeNetwork makes a pod share the node's network.
func onNodeNetwork(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
	p.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

// shrink removes all pods without measuring the stop of their containers.
func (g *grown) shrink(ctx context.Context) error {
	c := g.quiet()
	return together(starters, len(g.pods), func(i int) error {
		if p := g.pods[i]; p != nil {
			return c.removePod(ctx, p)
		}
		return nil
	})
}

// burden measures with the present number of pods.
func (g *grown) burden(ctx context.Context) error {
	n := len(g.pods)
	if n == 0 { // start with a fresh daemon
		if err := g.restart(ctx); err != nil {
			return err
		}
	}

	if err := g.weigh(ctx); err != nil {
		return err
	}
	if n >= 10 {
		if err := g.ask(ctx); err != nil {
			return err
		}
	}
	if n == networked && g.round == 0 {
		if err := g.idle(ctx); err != nil {
			return err
		}
	}
	if n == networked || n == 300 {
		return g.restart(ctx)
	}

	return nil
}

// quiet returns a client that measures nothing.
func (g *grown) quiet() *client { return g.clientOf(func(string, time.Duration) {}) }

// recording returns a client whose calls are measured with the present number of
// pods.
func (g *grown) recording() *client {
	return g.clientOf(g.recorder(g.phase, g.t.name, g.round, len(g.pods)))
}

func (g *grown) clientOf(record func(string, time.Duration)) *client {
	c := g.client(g.t, record)
	if g.oneCgroup {
		c.cgroups = nil
	}
	return c
}

func (g *grown) add(name string, value float64, unit string) {
	g.samples.add(Sample{g.phase, g.t.name, g.round, len(g.pods), name, value, unit})
}

// weigh measures the memory of the runtime's processes and of the kernel.
func (g *grown) weigh(ctx context.Context) error {
	pss, err := g.memory(ctx, g.t)
	if err != nil {
		return err
	}

	sum := 0
	for _, name := range slices.Sorted(maps.Keys(pss)) {
		sum += pss[name]
		g.add("PSS "+name, float64(pss[name]), "KiB")
	}

	if sum > 0 {
		g.add("PSS", float64(sum), "KiB")
	}
	kernel, err := kernelMemory()
	if err != nil {
		return err
	}

	if len(g.pods) == 0 {
		g.kernel = kernel
		return nil
	}

	g.add("kernel memory, beyond that of 0 pods", float64(kernel-g.kernel), "KiB")
	if charged, ok := chargedMemory(g.cgroupParent); ok && g.cgroupParent != "" {
		g.add("kernel memory charged to the pods' cgroups", float64(charged), "KiB")
	}
	return nil
}

// restart measures how long a stopped daemon takes until it is ready and lists its
// pods.
func (g *grown) restart(ctx context.Context) error {
	if g.t.daemon == nil {
		g.note(g.phase, "A runtime that the benchmark did not start is not restarted.")
		return nil
	}

	if err := g.t.daemon.Stop(); err != nil {
		return err
	}
	c := g.recording()
	return c.timed(ctx, "restart", func(ctx context.Context) error {
		if err := g.t.daemon.Start(ctx); err != nil {
			return err
		}
		for ready := false; !ready; {
			s, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
			if err != nil {
				return err
			}
			ready = isReady(s.GetStatus())
		}

		r, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
			Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}},
		})
		return wantCount(len(r.GetItems()), len(g.pods), err)
	})
}

// isReady reports whether runtime and network are ready.
func isReady(s *runtimeapi.RuntimeStatus) bool {
	ready := map[string]bool{}
	for _, c := range s.GetConditions() {
		ready[c.Type] = c.Status
	}
	return ready[runtimeapi.RuntimeReady] && ready[runtimeapi.NetworkReady]
}
