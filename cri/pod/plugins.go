package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
	"crisp/runtime/cgroup"
	"crisp/runtime/launch"
	"crisp/runtime/spawn"
)

// Plugins are programs of the node that take part in the life of pods and
// containers. A call lasts as long as the slowest plugin, up to its timeout.
// Calls are made with the pod's operation lock held, and with no other lock.
type Plugins interface {
	// Hold makes a plugin that connects wait until release is called. What plugins
	// are asked and what is noted as known to them in between reaches each of them
	// once: by that call, or when it is synchronised.
	Hold() (release func())
	// Active reports whether a plugin is connected. It only changes while nothing
	// is held.
	Active() bool

	// Sandbox tells the plugins of an event. An error of [SandboxRun] means that a
	// plugin refuses the sandbox.
	Sandbox(ctx context.Context, e SandboxEvent, r *Record) error
	// UpdateSandbox asks the plugins about new limits of a sandbox.
	UpdateSandbox(ctx context.Context, r *Record, overhead, resources *runtimeapi.LinuxContainerResources) error
	// Container tells the plugins of an event. An error of [ContainerStart] means
	// that a plugin refuses the start.
	Container(ctx context.Context, e ContainerEvent, v View) error
	// Create asks the plugins about a container, and adjusts what will be made of it
	// except for limits.
	Create(ctx context.Context, v View, out *spec.Result) (Adjustment, error)
	// Update asks the plugins about a change of limits.
	Update(ctx context.Context, v View, change *runtimeapi.LinuxContainerResources) (Adjustment, error)
	// Stopped tells the plugins that a container has exited.
	Stopped(ctx context.Context, v View) ([]Update, error)
}

// View is a container as plugins see it. Spec is nil if it is lost.
type View struct {
	Pod       *Record
	Container *Container
	Spec      *specs.Spec
}

// SandboxEvent is an event in the life of a sandbox.
type SandboxEvent int

// The events of a sandbox.
const (
	SandboxRun SandboxEvent = iota
	SandboxUpdated
	SandboxStop
	SandboxRemoved
)

// ContainerEvent is an event in the life of a container.
type ContainerEvent int

// The events of a container.
const (
	ContainerCreated ContainerEvent = iota
	ContainerStart
	ContainerStarted
	ContainerUpdated
	ContainerRemoved
)

// Adjustment is what plugins change.
type Adjustment struct {
	// Limits are the requested ones with the plugins' changes.
	Limits Limits
	// OOMScore is the oom_score_adj that they set, nil for none: zero is one too.
	OOMScore *int64
	// By lists the plugins that adjusted the container, with what they set.
	By []string
	// Updates are changes of other containers.
	Updates []Update
}

// Update is a change of a container's limits by a plugin. Refused is why it cannot be
// made, nil if it can. IgnoreFailure means that the operation that it belongs to
// succeeds without it.
type Update struct {
	Container     string
	Limits        Limits
	Refused       error
	IgnoreFailure bool
}

// known is what the plugins know of a pod.
type known struct {
	mu sync.Mutex
	// sandbox is set from before they are asked about the sandbox until they are
	// told that it is removed; stopped once they know that it has stopped.
	sandbox, stopped bool
	// containers are those that they know of.
	containers map[string]*exitReport
}

// exitReport is the report of a container's exit to plugins.
type exitReport struct {
	mu   sync.Mutex // held during the report; a plugin cannot connect meanwhile
	told bool       // guarded by mu
}

// done notes that plugins know of the exit, or will by other means.
func (e *exitReport) done() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = true
}

// load notes that plugins will be told of what the record has.
func (k *known) load(r *Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sandbox = !r.begun()
	k.stopped = r.Phase == phaseStopped
	for _, c := range r.Containers {
		if c.Phase != phaseReady {
			continue
		}
		k.addLocked(c.ID)
		if c.FinishedAt != 0 {
			k.containers[c.ID].done() // plugins learn it when they are synchronised
		}
	}
}

func (k *known) addLocked(id string) {
	if k.containers == nil {
		k.containers = map[string]*exitReport{}
	}
	k.containers[id] = &exitReport{}
}

// add notes that plugins are asked about a container.
func (k *known) add(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.addLocked(id)
}

// exit returns the report of a container's exit, nil if plugins do not know it.
func (k *known) exit(id string) *exitReport {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.containers[id]
}

// drop reports whether plugins know a container, which they forget.
func (k *known) drop(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.containers[id]
	delete(k.containers, id)
	return ok
}

// change sets one of the fields of the sandbox and reports whether it had the
// other value.
func (k *known) change(field *bool, to bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed := *field != to
	*field = to
	return changed
}

// plugins makes connecting plugins wait until release is called, and returns the
// connected ones, nil for none.
func (m *Manager) plugins() (pl Plugins, release func()) {
	if m.Plugins == nil {
		return nil, func() {}
	}
	release = m.Plugins.Hold()
	if !m.Plugins.Active() {
		return nil, release
	}
	return m.Plugins, release
}

// askRun lets the plugins refuse a sandbox whose network is attached.
func (p *pod) askRun(ctx context.Context) error {
	pl, release := p.m.plugins()
	defer release()
	p.known.change(&p.known.sandbox, true) // also if only some of them were asked
	if pl == nil {
		return nil
	}
	return pl.Sandbox(ctx, SandboxRun, p.record())
}

// tellSandboxStopped is the undo of askRun.
func (p *pod) tellSandboxStopped(ctx context.Context) error {
	if p.known.change(&p.known.stopped, true) {
		p.tellSandbox(ctx, SandboxStop)
	}
	return nil
}

// tellSandboxRemoved tells the plugins once.
func (p *pod) tellSandboxRemoved(ctx context.Context) {
	pl, release := p.m.plugins()
	defer release()
	if p.known.change(&p.known.sandbox, false) && pl != nil {
		warn(pl.Sandbox(ctx, SandboxRemoved, p.record()), "tell plugins of a removed sandbox", "sandbox", p.record().ID)
	}
}

// tellSandbox tells the plugins of an event that they cannot prevent.
func (p *pod) tellSandbox(ctx context.Context, e SandboxEvent) {
	pl, release := p.m.plugins()
	defer release()
	if pl != nil {
		warn(pl.Sandbox(ctx, e, p.record()), "tell plugins of a sandbox", "sandbox", p.record().ID)
	}
}

func (p *pod) askSandboxUpdate(ctx context.Context, overhead, resources *runtimeapi.LinuxContainerResources) error {
	pl, release := p.m.plugins()
	defer release()
	if pl == nil {
		return nil
	}
	return pl.UpdateSandbox(ctx, p.record(), overhead, resources)
}

// pluginRetry is how often a container looks for a required plugin.
const pluginRetry = 200 * time.Millisecond

// askCreate has the plugins adjust a container that does not exist yet, and waits
// for required ones. data is the encoded form of the spec, and returned anew if
// that was changed.
func (k *creation) askCreate(ctx context.Context, out *spec.Result, data []byte) (Adjustment, []byte, error) {
	until := time.Now().Add(k.p.m.PluginWait)
	for {
		a, err := k.askOnce(ctx, out)
		switch {
		case err == nil && len(a.By) == 0:
			return a, data, nil
		case err == nil:
			data, err = k.adjust(ctx, a, out)
			return a, data, err
		case !errors.Is(err, ErrNoPlugin):
			return a, data, err
		case time.Now().After(until):
			return a, data, fmt.Errorf("waited %v: %w", k.p.m.PluginWait, err)
		}

		// Nothing is held meanwhile, so that the plugin can connect.
		select {
		case <-ctx.Done():
			return a, data, ctx.Err()
		case <-time.After(pluginRetry):
		}
	}
}

func (k *creation) askOnce(ctx context.Context, out *spec.Result) (Adjustment, error) {
	pl, release := k.p.m.plugins()
	defer release()
	k.p.known.add(k.id)
	if pl == nil {
		return Adjustment{}, nil
	}
	a, err := pl.Create(ctx, View{k.p.record(), k.record(), out.Spec}, out)
	if errors.Is(err, ErrNoPlugin) {
		// No plugin knows the container any more: one that connects now is asked about
		// it later, and must not learn of it before.
		k.p.known.drop(k.id)
	}
	return a, err
}

// adjust puts the limits of plugins into an adjusted spec, and encodes it.
func (k *creation) adjust(ctx context.Context, a Adjustment, out *spec.Result) (data []byte, err error) {
	m, c := k.p.m, *k.record()
	a.note(&c)
	if out.Spec.Linux.Resources, err = m.limits(&c, out.Spec); err != nil {
		return nil, fmt.Errorf("%w (%q): limits: %w", ErrPlugin, a.By, err)
	}
	about := spec.Input{Sandbox: k.p.record().Config.Msg, Config: c.Config.Msg, SandboxID: k.p.record().ID}
	about.Annotate(out.Spec)
	if err := k.check(out); err != nil {
		return nil, fmt.Errorf("%w (%q): %w", ErrPlugin, a.By, err)
	}
	klog.V(1).InfoS("Container adjusted by plugins", "container", k.id, "adjustments", a.By)

	cfg, img := c.Config.Msg, k.image.Config.Config
	free, err := m.Images.Reserve(ctx, spec.Cost(cfg, img))
	if err != nil {
		return nil, err
	}
	defer free()
	return spec.Encode(out.Spec)
}

// check returns the error that an adjusted container would be refused with if it
// were requested so, or would fail to start with.
func (k *creation) check(out *spec.Result) error {
	m := k.p.m
	if err := spec.CheckAdjusted(out.Spec, m.Host); err != nil {
		return err
	}
	return m.Launcher.Check(launch.Request{
		Name: "plan of the container", Spec: out.Spec, InPod: true, AnyOrder: true, Hierarchies: m.Cgroups.Hierarchies(),
	})
}

// blamePlugins names the plugins that adjusted a container in the error of a limit or
// of a step of its start that the kernel refused, of a program or mount source that
// does not exist, or of a process that did not survive its start: what they have set
// is the likeliest cause.
func blamePlugins(c *Container, err error) error {
	var step *spawn.StepError
	failed := errors.As(err, &step)
	for _, likely := range []error{
		spawn.ErrDied, launch.ErrNotFound, launch.ErrNotExecutable, launch.ErrNoSource, cgroup.ErrResources, cgroup.ErrUnsupported,
	} {
		failed = failed || errors.Is(err, likely)
	}
	if len(c.Plugins) == 0 || !failed {
		return err
	}

	return fmt.Errorf("%w (perhaps %w: %q)", err, ErrPlugin, c.Plugins)
}

// maxSwappiness is the highest value that both versions of cgroups accept.
const maxSwappiness = 100

// checkOthers checks the limits of plugins that the CRI has no fields for, as far as
// the kernel does not.
func checkOthers(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if m := r.Memory; m != nil && m.Swappiness != nil && *m.Swappiness > maxSwappiness {
		return fmt.Errorf("%w: memory swappiness of %d, at most %d", ErrInvalid, *m.Swappiness, maxSwappiness)
	}
	if m := r.Memory; m != nil && m.Reservation != nil && *m.Reservation < -1 {
		return fmt.Errorf("%w: memory reservation of %d bytes", ErrInvalid, *m.Reservation)
	}
	if p := r.Pids; p != nil && p.Limit != nil && *p.Limit < -1 {
		return fmt.Errorf("%w: limit of %d processes", ErrInvalid, *p.Limit)
	}
	return nil
}

// note records the limits in a container.
func (a *Adjustment) note(c *Container) {
	if len(a.By) == 0 {
		return
	}
	if a.Limits.Resources != nil || a.OOMScore != nil {
		merged := spec.MergeResources(c.limits(), a.Limits.Resources)
		if a.OOMScore != nil {
			merged.OomScoreAdj = *a.OOMScore
		}
		msg := message(merged)
		c.Resources = &msg
	}
	c.PluginLimits, c.Plugins = overlay(c.PluginLimits, a.Limits.Other), a.By
}

// view returns a container as plugins see it.
func (p *pod) view(id string) (View, bool) {
	r := p.record()
	c := r.Container(id)
	if c == nil {
		return View{}, false
	}
	s, err := p.loadSpec(id)
	if err != nil {
		s = nil // they learn what the record has
	}
	return View{r, c, s}, true
}

// askStart lets the plugins refuse a start.
func (p *pod) askStart(ctx context.Context, c *Container) error {
	pl, release := p.m.plugins()
	defer release()
	if pl == nil {
		return nil
	}
	v, ok := p.view(c.ID)
	if !ok {
		return fmt.Errorf("container %s: %w", c.ID, ErrNotFound)
	}
	return pl.Container(ctx, ContainerStart, v)
}

// tellContainer tells the plugins of an event that they cannot prevent.
func (p *pod) tellContainer(ctx context.Context, e ContainerEvent, id string) {
	pl, release := p.m.plugins()
	defer release()
	if pl == nil {
		return
	}
	if v, ok := p.view(id); ok {
		warn(pl.Container(ctx, e, v), "tell plugins of a container", "container", id)
	}
}

// tellRemoved tells the plugins that a container is being removed, if they know it.
func (p *pod) tellRemoved(ctx context.Context, id string) {
	pl, release := p.m.plugins()
	defer release()
	if !p.known.drop(id) || pl == nil {
		return
	}
	if v, ok := p.view(id); ok {
		warn(pl.Container(ctx, ContainerRemoved, v), "tell plugins of a removed container", "container", id)
	}
}

// tellStopped tells the plugins once that a container has exited, and applies the
// changes of others that they ask for. A second call waits for the first.
func (p *pod) tellStopped(ctx context.Context, id string) {
	updates := p.reportExit(ctx, id)
	if len(updates) > 0 {
		// The caller may hold the lock of a pod that one of them needs.
		p.m.wg.Go(func() { p.m.ApplyUpdates(p.m.ctx, updates) })
	}
}

func (p *pod) reportExit(ctx context.Context, id string) []Update {
	pl, release := p.m.plugins()
	defer release()
	report := p.known.exit(id)
	if report == nil {
		return nil
	}
	report.mu.Lock()
	defer report.mu.Unlock()
	told := report.told
	report.told = true
	if told || pl == nil {
		return nil
	}

	v, ok := p.view(id)
	if !ok {
		return nil
	}
	updates, err := pl.Stopped(ctx, v)
	warn(err, "tell plugins of an exit", "container", id)
	return updates
}

// askUpdate asks the plugins about a change of limits.
func (p *pod) askUpdate(ctx context.Context, c *Container, change *runtimeapi.LinuxContainerResources) (Adjustment, error) {
	pl, release := p.m.plugins()
	defer release()
	unchanged := Adjustment{Limits: Limits{Resources: change}}
	if pl == nil {
		return unchanged, nil
	}
	v, ok := p.view(c.ID)
	if !ok {
		return unchanged, fmt.Errorf("container %s: %w", c.ID, ErrNotFound)
	}
	return pl.Update(ctx, v, change)
}

// Known returns the sandboxes and containers that plugins have to know of. It is
// called while nothing is held.
func (m *Manager) Known() (sandboxes []*Record, containers []View) {
	m.mu.RLock()
	pods := make([]*pod, 0, len(m.pods))
	for _, p := range m.pods {
		pods = append(pods, p)
	}
	m.mu.RUnlock()
	slices.SortFunc(pods, func(a, b *pod) int { return int(a.record().CreatedAt - b.record().CreatedAt) })

	for _, p := range pods {
		p.known.mu.Lock()
		sandbox := p.known.sandbox
		var ids []string
		for _, c := range p.record().Containers {
			report := p.known.containers[c.ID]
			if report == nil {
				continue
			}
			ids = append(ids, c.ID)
			if c.FinishedAt != 0 {
				report.done()
			}
		}
		p.known.mu.Unlock()
		if !sandbox {
			continue
		}

		sandboxes = append(sandboxes, p.record())
		for _, id := range ids {
			if v, ok := p.view(id); ok {
				containers = append(containers, v)
			}
		}
	}
	return sandboxes, containers
}
