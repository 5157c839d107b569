package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/adaptation/builtin"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/pod"
	"crisp/cri/spec"
	"crisp/runtime/hook"
)

// Errors of plugins.
var (
	// ErrRefused is a plugin's error, or an adjustment that a validator rejects.
	ErrRefused = errors.New("refused by a plugin")
	// ErrUnsupported is an adjustment that crisp cannot make.
	ErrUnsupported = errors.New("unsupported adjustment by a plugin")
	// ErrTooMany means that a plugin, or all of them, exceed a limit.
	ErrTooMany = errors.New("too many for plugins")
	// ErrFile is a file in a directory of plugins that cannot be one.
	ErrFile = errors.New("unusable file")
)

// maxPlugins is how many plugins may be connected: each is asked in turn about every
// container.
const maxPlugins = 64

// Options configure a [Host].
type Options struct {
	// Version is crisp's version, which plugins are told.
	Version string
	// Socket is where plugins connect; empty means that none may.
	Socket string
	// PluginDir has the plugins that are started with the daemon, ConfigDir their
	// configurations.
	PluginDir, ConfigDir string
	// Stage is a directory of the daemon's own for those of them that can be used; it
	// is made anew.
	Stage string
	// RegistrationTimeout bounds the time until a plugin is registered,
	// RequestTimeout a request to one; zero means the protocol's default.
	RegistrationTimeout, RequestTimeout time.Duration
	// Required are the names of plugins without which no container is created.
	Required []string
	// Reject are adjustments that no plugin may make: see [Rejectable].
	Reject []string
	// CDI adds devices of the Container Device Interface to a spec.
	CDI func(s *specs.Spec, names []string) (hook.Sources, error)
}

// Runtime is what plugins look at and change.
type Runtime interface {
	// Known returns all that plugins have to know of when they connect.
	Known() ([]*pod.Record, []pod.View)
	// ApplyUpdates changes limits, and returns the indices of the changes that failed.
	ApplyUpdates(ctx context.Context, updates []pod.Update) (failed []int)
}

// Host connects plugins. It implements [pod.Plugins].
type Host struct {
	opt     Options
	adapt   *adaptation.Adaptation
	runtime Runtime // set by Start
	active  atomic.Int32
	// builtins is how many of the connected plugins are our own.
	builtins int32
	gate     *gate
	caller   *caller
	wg       sync.WaitGroup // of updates after a synchronisation

	// creating orders creations, as the library does, so that by and missing belong
	// to the present one.
	creating sync.Mutex
	by       []string
	missing  []string
	// unanswered are the plugins that did not answer about it.
	unanswered []string
}

// New returns a host without plugins.
func New(o Options) (*Host, error) {
	h := &Host{opt: o, gate: newGate(), caller: &caller{time: cmp.Or(o.RequestTimeout, adaptation.DefaultPluginRequestTimeout)}}
	if o.RegistrationTimeout > 0 {
		adaptation.SetPluginRegistrationTimeout(o.RegistrationTimeout)
	}
	if o.RequestTimeout > 0 {
		adaptation.SetPluginRequestTimeout(o.RequestTimeout)
	}

	options, err := h.options()
	if err != nil {
		return nil, err
	}
	if h.adapt, err = adaptation.New("crisp", o.Version, h.synchronise, h.update, options...); err != nil {
		return nil, fmt.Errorf("set up plugins: %w", err)
	}
	return h, nil
}

func (h *Host) options() ([]adaptation.Option, error) {
	o := h.opt
	options := []adaptation.Option{
		adaptation.WithPluginPath(stage{o.Stage}.plugins()), adaptation.WithPluginConfigPath(stage{o.Stage}.configs()), adaptation.WithMetrics(meter{h}),
		adaptation.WithTTRPCOptions(h.caller.options(), h.gate.options()),
	}
	if o.Socket == "" {
		options = append(options, adaptation.WithDisabledExternalConnections())
	} else {
		options = append(options, adaptation.WithSocketPath(o.Socket))
	}

	config, err := validators(o.Reject)
	if err != nil {
		return nil, err
	}
	if config.Enable {
		options = append(options, adaptation.WithDefaultValidator(config))
		h.builtins++
	}
	if len(o.Required) > 0 {
		options = append(options, adaptation.WithBuiltinPlugins(&builtin.BuiltinPlugin{
			Base: "required", Index: "00",
			Handlers: builtin.BuiltinHandlers{ValidateContainerAdjustment: h.checkRequired},
		}))
		h.builtins++
	}
	return options, nil
}

// Rejectable names what [Options].Reject may have.
func Rejectable() []string {
	return []string{"hooks", "namespaces", "sysctls", "seccomp-default", "seccomp-unconfined", "seccomp-custom"}
}

// validators configures the library's own validator.
func validators(reject []string) (*validator.DefaultValidatorConfig, error) {
	c := &validator.DefaultValidatorConfig{Enable: len(reject) > 0}
	for _, what := range reject {
		switch what {
		case "hooks":
			c.RejectOCIHookAdjustment = true
		case "namespaces":
			c.RejectNamespaceAdjustment = true
		case "sysctls":
			c.RejectSysctlAdjustment = true
		case "seccomp-default":
			c.RejectRuntimeDefaultSeccompAdjustment = true
		case "seccomp-unconfined":
			c.RejectUnconfinedSeccompAdjustment = true
		case "seccomp-custom":
			c.RejectCustomSeccompAdjustment = true
		default:
			return nil, fmt.Errorf("cannot reject %q of plugins: want one of %q", what, Rejectable())
		}
	}
	return c, nil
}

// Start starts the plugins of the directory, tells them of what exists, and lets
// others connect.
func (h *Host) Start(r Runtime) error {
	h.runtime = r
	skipped, err := stage{h.opt.Stage}.fill(h.opt.PluginDir, h.opt.ConfigDir)
	if err != nil {
		return fmt.Errorf("start plugins: %w", err)
	}
	for _, err := range skipped {
		klog.ErrorS(err, "Could not start a plugin")
	}

	if c, err := net.Dial("unix", h.opt.Socket); h.opt.Socket != "" && err == nil {
		c.Close()
		return fmt.Errorf("start plugins: another process, perhaps another runtime, listens on %s: set nri_socket", h.opt.Socket)
	}
	if err := h.adapt.Start(); err != nil {
		return fmt.Errorf("start plugins: %w", err)
	}
	if h.opt.Socket == "" {
		return nil
	}
	// A process that can write to it can run programs as root.
	if err := os.Chmod(h.opt.Socket, 0o600); err != nil {
		return fmt.Errorf("protect the socket of plugins: %w", err)
	}
	return nil
}

// Close disconnects all plugins. Those that the daemon started end.
func (h *Host) Close() {
	h.adapt.Stop()
	h.wg.Wait()
	h.caller.close()
}

// Hold implements [pod.Plugins].
func (h *Host) Hold() (release func()) {
	block := h.adapt.BlockPluginSync()
	return block.Unblock
}

// Active implements [pod.Plugins].
func (h *Host) Active() bool { return h.active.Load() > h.builtins || len(h.opt.Required) > 0 }

// Sandbox implements [pod.Plugins].
func (h *Host) Sandbox(ctx context.Context, e pod.SandboxEvent, r *pod.Record) (err error) {
	ctx = asking(ctx)
	p := podOf(r)
	switch e {
	case pod.SandboxRun:
		err = h.adapt.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: p})
	case pod.SandboxUpdated:
		err = h.adapt.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: p})
	case pod.SandboxStop:
		err = h.adapt.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: p})
	case pod.SandboxRemoved:
		err = h.adapt.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: p})
	}
	return refused(err)
}

// UpdateSandbox implements [pod.Plugins].
func (h *Host) UpdateSandbox(ctx context.Context, r *pod.Record, overhead, resources *runtimeapi.LinuxContainerResources) error {
	ctx = asking(ctx)
	_, err := h.adapt.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
		Pod: podOf(r), OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(resources),
	})
	return refused(err)
}

// Container implements [pod.Plugins].
func (h *Host) Container(ctx context.Context, e pod.ContainerEvent, v pod.View) (err error) {
	ctx = asking(ctx)
	p, c := podOf(v.Pod), containerOf(v)
	switch e {
	case pod.ContainerCreated:
		err = h.adapt.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: p, Container: c})
	case pod.ContainerStart:
		err = h.adapt.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: p, Container: c})
	case pod.ContainerStarted:
		err = h.adapt.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: p, Container: c})
	case pod.ContainerUpdated:
		err = h.adapt.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: p, Container: c})
	case pod.ContainerRemoved:
		err = h.adapt.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: p, Container: c})
	}
	return refused(err)
}

// Create implements [pod.Plugins].
func (h *Host) Create(ctx context.Context, v pod.View, out *spec.Result) (pod.Adjustment, error) {
	ctx = asking(ctx)
	asked := &adaptation.CreateContainerRequest{Pod: podOf(v.Pod), Container: containerOf(v)}
	answer, by, missing, err := h.tryCreate(ctx, asked)
	if len(missing) > 0 {
		// Those that were asked forget the container before they are asked again.
		err := h.Container(ctx, pod.ContainerRemoved, v)
		return pod.Adjustment{}, errors.Join(fmt.Errorf("%w: %s (see nri_required_plugins)", pod.ErrNoPlugin, strings.Join(missing, ", ")), err)
	}
	if err != nil {
		return pod.Adjustment{}, refused(err)
	}

	a := pod.Adjustment{By: by}
	adjust := answer.GetAdjust()
	if adjust != nil && len(by) > 0 {
		if err := supported(adjust); err != nil {
			return a, fmt.Errorf("%w (plugins: %s)", err, strings.Join(by, ", "))
		}
		remove(out.Spec, containerOf(v), asked.GetContainer())
		if err := apply(out, adjust, h.opt.CDI); err != nil {
			return a, fmt.Errorf("%w: %w (plugins: %s)", ErrUnsupported, err, strings.Join(by, ", "))
		}
		a.Limits = limits(adjust.GetLinux().GetResources())
		if score := adjust.GetLinux().GetOomScoreAdj(); score != nil {
			a.OOMScore = &score.Value
		}
	}
	a.Updates = updatesOf(answer.GetUpdate())
	return a, nil
}

// tryCreate asks the plugins once.
func (h *Host) tryCreate(ctx context.Context, r *adaptation.CreateContainerRequest) (answer *adaptation.CreateContainerResponse, by, missing []string, err error) {
	h.creating.Lock()
	defer h.creating.Unlock()
	h.by, h.missing, h.unanswered = nil, nil, nil
	answer, err = h.adapt.CreateContainer(ctx, r)
	return answer, h.by, h.missing, err
}

// checkRequired is a validator that rejects containers for which not all required
// plugins were asked.
func (h *Host) checkRequired(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	for _, name := range h.opt.Required {
		asked := slices.ContainsFunc(r.GetPlugins(), func(p *api.PluginInstance) bool {
			full := p.GetIndex() + "-" + p.GetName()
			return (p.GetName() == name || full == name) && !slices.Contains(h.unanswered, full)
		})
		if !asked {
			h.missing = append(h.missing, name)
		}
	}
	if len(h.missing) > 0 {
		return pod.ErrNoPlugin
	}
	return nil
}

// Update implements [pod.Plugins].
func (h *Host) Update(ctx context.Context, v pod.View, change *runtimeapi.LinuxContainerResources) (pod.Adjustment, error) {
	ctx = asking(ctx)
	answer, err := h.adapt.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
		Pod: podOf(v.Pod), Container: containerOf(v), LinuxResources: fromCRI(change),
	})
	if err != nil {
		return pod.Adjustment{}, refused(err)
	}

	a := pod.Adjustment{Limits: pod.Limits{Resources: change}}
	for _, u := range answer.GetUpdate() {
		if u == nil {
			continue // no plugin changed the request
		}
		if u.GetContainerId() != v.Container.ID {
			a.Updates = append(a.Updates, updatesOf([]*api.ContainerUpdate{u})...)
			continue
		}
		if err := supportedUpdate(u.GetLinux().GetResources()); err != nil {
			return pod.Adjustment{}, fmt.Errorf("change of limits by plugins: %w", err)
		}
		changed := limits(u.GetLinux().GetResources())
		// The protocol has no field for it.
		changed.Resources = orEmpty(changed.Resources)
		changed.Resources.OomScoreAdj = change.GetOomScoreAdj()
		a.Limits = changed
	}
	return a, nil
}

// Stopped implements [pod.Plugins].
func (h *Host) Stopped(ctx context.Context, v pod.View) ([]pod.Update, error) {
	ctx = asking(ctx)
	answer, err := h.adapt.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: podOf(v.Pod), Container: containerOf(v)})
	if err != nil {
		return nil, refused(err)
	}
	return updatesOf(answer.GetUpdate()), nil
}

// synchronise tells a plugin that connects of all that exists, and makes the
// changes that it asks for.
func (h *Host) synchronise(ctx context.Context, tell adaptation.SyncCB) error {
	if n := h.active.Load() - h.builtins; n >= maxPlugins {
		return fmt.Errorf("%w: %d plugins are connected", ErrTooMany, n)
	}
	records, views := h.runtime.Known()
	pods := make([]*api.PodSandbox, 0, len(records))
	for _, r := range records {
		pods = append(pods, briefPod(podOf(r)))
	}
	containers := make([]*api.Container, 0, len(views))
	for _, v := range views {
		containers = append(containers, briefContainer(containerOf(v)))
	}

	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	if len(updates) == 0 {
		return nil
	}
	// Operations on pods wait for the end of this call, with the locks that the
	// updates need.
	h.wg.Go(func() { h.runtime.ApplyUpdates(context.WithoutCancel(ctx), updatesOf(updates)) })
	return nil
}

// update makes changes that a plugin asks for at any time.
func (h *Host) update(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	var failed []*api.ContainerUpdate
	for _, i := range h.runtime.ApplyUpdates(ctx, updatesOf(updates)) {
		failed = append(failed, updates[i])
	}
	return failed, nil
}

// asking is the context of a request to plugins, which a caller's impatience does not
// end: the library would take that for a plugin that does not answer, and disconnect
// it. Each answer is bounded by the request's own timeout.
func asking(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// refused marks an error as one of a plugin. Only its text is kept: its code is the
// plugin's, and means nothing to kubelet.
func refused(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if _, description, ok := strings.Cut(text, " desc = "); ok {
		text = description
	}
	return fmt.Errorf("%w: %s", ErrRefused, text)
}

// meter learns from the library which plugins are connected and what they adjust.
type meter struct{ h *Host }

func (m meter) UpdatePluginCount(count int) { m.h.active.Store(int32(count)) }

func (m meter) RecordPluginInvocation(plugin, operation string, err error) {
	if err == nil {
		return
	}
	klog.InfoS("Plugin failed a request", "plugin", plugin, "request", operation, "err", err)
	if isCreation(operation) {
		m.h.unanswered = append(m.h.unanswered, plugin)
	}
}

// isCreation reports whether an operation is that of [Host.tryCreate], in the
// middle of which the library calls the meter.
func isCreation(operation string) bool { return operation == api.Event_CREATE_CONTAINER.PrettyName() }

func (meter) RecordPluginLatency(string, string, time.Duration) {}

func (m meter) RecordPluginAdjustments(plugin, operation string, a *api.ContainerAdjustment, _, evictions int) {
	if evictions > 0 {
		klog.InfoS("Evictions by a plugin ignored: the protocol's library does not pass them on", "plugin", plugin, "evictions", evictions)
	}
	if what := summary(a); what != "" && isCreation(operation) {
		m.h.by = append(m.h.by, plugin+": "+what)
	}
}

// LogLibrary has the protocol's library log as the daemon does. It is called before
// [New], once.
func LogLibrary() { log.Set(logger{}) }

// logger has the library log as the daemon does.
type logger struct{}

func (logger) Debugf(_ context.Context, format string, args ...any) {
	klog.V(2).InfoS("Plugins: " + fmt.Sprintf(format, args...))
}

func (logger) Infof(_ context.Context, format string, args ...any) {
	klog.V(1).InfoS("Plugins: " + fmt.Sprintf(format, args...))
}

func (logger) Warnf(_ context.Context, format string, args ...any) {
	klog.InfoS("Plugins: " + fmt.Sprintf(format, args...))
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	if text := fmt.Sprintf(format, args...); strings.Contains(text, adaptation.ErrWasmDisabled.Error()) {
		l.Debugf(ctx, "%s", text) // that is by intention
		return
	}
	klog.InfoS("Plugins: " + fmt.Sprintf(format, args...))
}
