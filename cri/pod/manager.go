package pod

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
	"crisp/cri/spec/selinux"
	"crisp/image"
	"crisp/network"
	"crisp/runtime/cgroup"
	"crisp/runtime/criu"
	"crisp/runtime/durable"
	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/keeper/table"
	"crisp/runtime/launch"
	"crisp/runtime/pages"
	"crisp/runtime/span"
)

// Images is the part of the image service that pods use.
type Images interface {
	Get(ref string) (image.Image, error)
	Prepare(id, imageID string, uids, gids []specs.LinuxIDMapping) error
	Mount(ctx context.Context, id string, v image.View) (*os.File, error)
	MountImage(ctx context.Context, imageID, subPath string, v image.View) (*os.File, error)
	// Hold pins an image that a container uses as a volume until Discard.
	Hold(containerID, imageID string) error
	Discard(id string) error
	// Upper opens the directory with what a container wrote.
	Upper(id string) (*os.File, error)
	Lower(ctx context.Context, id string) (*os.File, error)
	// Commit makes an image of another one, and of a layer that changes writes.
	Commit(ctx context.Context, id string, o image.CommitOptions, changes func(ctx context.Context, to io.Writer) (bool, error)) (image.Image, error)
	// Export and Import carry images to other nodes.
	Export(ctx context.Context, refs []string, w io.Writer) error
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Imported, error)
	// Containers are the ids that have a prepared layer or held image.
	Containers() []string
	// Reserve waits for so many bytes of the memory budget for image data. The
	// caller releases them, and must not block in between.
	Reserve(ctx context.Context, bytes int64) (release func(), err error)
}

// Network connects a pod's network namespace. Detach is idempotent and works
// when the namespace no longer exists, or after a reboot.
type Network interface {
	// Ready reports why pods could not be attached now.
	Ready() error
	Attach(ctx context.Context, a network.Attachment) (network.Result, error)
	Detach(ctx context.Context, a network.Attachment) error
	// Sweep detaches everything that this daemon attached and that is not among
	// ids.
	Sweep(ctx context.Context, ids []string) error
}

// Options configure a [Manager].
type Options struct {
	// Root is the directory for records (kept over a reboot), NetNSDir the one
	// where network namespaces are pinned.
	Root, NetNSDir string
	// StateDir is the directory for what does not outlive the boot.
	StateDir string
	Keeper   *client.Link
	Launcher *launch.Launcher
	Cgroups  *cgroup.Node
	Images   Images
	Network  Network
	// Host and Node describe the machine to package spec.
	Host spec.Host
	Node spec.Node
	// SELinux derives labels; nil without it.
	SELinux *selinux.Policy
	// CDI adds devices of the Container Device Interface to a spec, see [spec.Input].
	CDI func(s *specs.Spec, names []string) (hook.Sources, error)
	// Plugins take part in the life of pods and containers; nil for none.
	Plugins Plugins
	// PluginWait is how long a container waits for a plugin that is required and
	// not connected.
	PluginWait time.Duration
	// Meter measures operations; nil for none.
	Meter Meter
	// ReadPages has the memory of running processes read, see [pages.Apart]; nil to send none of
	// a pod that moves before it is frozen.
	ReadPages func(ctx context.Context, groups []pages.Lister, use func(block []byte) error) error
	// CRIU finds the program that saves processes.
	CRIU *criu.Finder
	// Refill is the command that runs [checkpoint.ServeRefill].
	Refill []string
	// Choices are those to begin with, see [Manager.Choose].
	Choices Choices
	// Observe gives each pod with a network of its own a first process and a
	// cgroup for it, through which cAdvisor reads network stats.
	Observe bool
	// ResctrlDir is where the resctrl file system is mounted, if the node has it.
	ResctrlDir string
	// MaxLogLine is the length in bytes at which a log line is split.
	MaxLogLine int
}

// Choices are the node's for new pods and containers. They may change while pods run.
type Choices struct {
	// Seccomp has the profiles, Defaults what containers get that ask for nothing.
	Seccomp  spec.Seccomp
	Defaults spec.Defaults
	// Hooks adds the node's own hooks to a spec, see [spec.Input].
	Hooks func(s *specs.Spec, sources hook.Sources, annotations map[string]string) (hook.Sources, error)
	// Handlers are the runtime handlers that pods may request in addition to "".
	Handlers []string
	// RestoreFrom says whose checkpoints are restored, see [checkpoint.ParsePolicy].
	RestoreFrom []string
}

// Manager owns the pods of a node.
type Manager struct {
	Options
	choices  atomic.Pointer[Choices]
	store    store
	bootID   string
	events   broadcaster
	activity activity
	// table has a row for everything that the keeper holds for this daemon.
	table *table.Table
	specs specCache
	// left are cgroups that could not be removed with what they were for.
	left *leftGroups

	// ctx ends with the daemon; Close waits for running operations.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// mu guards the maps below and is never held across I/O.
	mu         sync.RWMutex
	pods       map[string]*pod
	containers map[string]*pod // by container id
	names      map[string]string
	ops        map[string]*operation
	arrivals   map[string]*receiving // pods that are moving here, by token

	levels selinux.Levels // of all existing pods
	// conversations counts the nodes that talk about moving a pod here.
	conversations atomic.Int32
	silence       silence
}

// Open loads the state of the last daemon, reconciles it with the kernel, and
// starts to follow the keeper's exits.
func Open(ctx context.Context, o Options) (*Manager, error) {
	bootID, err := durable.BootID()
	if err != nil {
		return nil, err
	}

	records, err := openStore(filepath.Join(o.Root, "pods"), bootID)
	if err != nil {
		return nil, err
	}

	if err := os.MkdirAll(o.NetNSDir, 0o755); err != nil {
		return nil, fmt.Errorf("create directory for network namespaces: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(o.StateDir, yardDir), 0o700); err != nil {
		return nil, fmt.Errorf("create directory for restores: %w", err)
	}
	left, err := openLeft(filepath.Join(o.StateDir, leftDir))
	if err != nil {
		return nil, err
	}
	m := &Manager{
		Options:    o,
		left:       left,
		store:      records,
		bootID:     bootID,
		pods:       map[string]*pod{},
		containers: map[string]*pod{},
		names:      map[string]string{},
		ops:        map[string]*operation{},
		arrivals:   map[string]*receiving{},
	}
	m.events.history = m.activity.note
	m.Choose(o.Choices)

	m.table = table.New(o.Keeper, m.forgetUnknown)
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.recover(ctx); err != nil {
		m.cancel()
		return nil, err
	}

	m.wg.Go(func() { m.table.Run(m.ctx) })
	m.wg.Go(func() { m.removeLeft(m.ctx) })
	m.wg.Go(m.watchKeeper)
	m.upgradeKeeper()
	return m, nil
}

// Choose changes the node's choices for what is created from now on.
func (m *Manager) Choose(c Choices) { m.choices.Store(&c) }

// Handlers are the runtime handlers that pods may request in addition to "".
func (m *Manager) Handlers() []string { return m.choices.Load().Handlers }

// Close stops following pods and waits for running operations. Pods and
// containers keep running.
func (m *Manager) Close() {
	m.cancel()
	m.events.close()
	m.wg.Wait()
}

// newID returns a fresh 64-digit hexadecimal id.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// operation is a running change that several callers may wait for.
type operation struct {
	done chan struct{}
	id   string
	err  error
}

// join runs do under the given key, unless it is already running, and waits
// until it returns or the caller's context ends. The operation continues
// without the caller.
func (m *Manager) join(ctx context.Context, key string, what Operation, do func(context.Context) (string, error)) (string, error) {
	m.mu.Lock()
	op := m.ops[key]
	if op != nil {
		span.Note(ctx, "waits for "+key+", which an earlier call began")
	} else {
		op = &operation{done: make(chan struct{})}
		m.ops[key] = op
		m.wg.Go(func() {
			work, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
			defer cancel()
			work, end := m.activity.begin(work, what)
			op.id, op.err = do(work)
			end(op.err)
			m.mu.Lock()
			delete(m.ops, key)
			m.mu.Unlock()
			close(op.done)
		})
	}
	m.mu.Unlock()

	if err := op.wait(ctx, key); err != nil {
		return "", err
	}
	return op.id, op.err
}

// awaitEnd waits until the operation with a key has ended, if there is one, whatever its
// result.
func (m *Manager) awaitEnd(ctx context.Context, key string) error {
	m.mu.RLock()
	op := m.ops[key]
	m.mu.RUnlock()
	if op == nil {
		return nil
	}
	return op.wait(ctx, key)
}

// wait waits until the operation with a key has ended, or the caller's context.
func (op *operation) wait(ctx context.Context, key string) error {
	select {
	case <-op.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s, which continues in the background: %w", key, ctx.Err())
	}
}

// operationTimeout bounds an operation that outlived its callers.
const operationTimeout = 5 * time.Minute

func (m *Manager) register(p *pod) {
	r := p.record()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[r.ID] = p
	m.names[sandboxKey(r.Config.Msg.GetMetadata())] = r.ID
	for _, c := range r.Containers {
		m.containers[c.ID] = p
	}
}

func (m *Manager) unregister(p *pod) {
	r := p.record()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[r.ID] == p {
		m.levels.Drop(r.SELinuxLevel)
	}
	delete(m.pods, r.ID)
	if key := sandboxKey(r.Config.Msg.GetMetadata()); m.names[key] == r.ID {
		delete(m.names, key)
	}
	for _, c := range r.Containers {
		delete(m.containers, c.ID)
	}
}

// find resolves an id or a unique prefix of one in an index.
func find[V any](m *Manager, index map[string]V, kind, id string) (V, string, error) {
	var zero V
	if id == "" {
		return zero, "", fmt.Errorf("%w: empty %s id", ErrInvalid, kind)
	}

	m.mu.RLock()
	defer m.mu.RUnlock()
	if v, ok := index[id]; ok {
		return v, id, nil
	}

	var match string
	for full := range index {
		if strings.HasPrefix(full, id) {
			if match != "" {
				return zero, "", fmt.Errorf("%s %s: %w", kind, id, ErrAmbiguous)
			}
			match = full
		}
	}
	if match == "" {
		return zero, "", fmt.Errorf("%s %s: %w", kind, id, ErrNotFound)
	}

	return index[match], match, nil
}

func (m *Manager) pod(id string) (*pod, error) {
	p, _, err := find(m, m.pods, "sandbox", id)
	return p, err
}

// container returns a container's pod and full id.
func (m *Manager) container(id string) (*pod, string, error) {
	return find(m, m.containers, "container", id)
}

// Sandbox returns the record of the sandbox with the given id or id prefix.
func (m *Manager) Sandbox(id string) (*Record, error) {
	p, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	return p.record(), nil
}

// Container returns a container by id or id prefix, with the record of its pod.
func (m *Manager) Container(id string) (*Container, *Record, error) {
	p, full, err := m.container(id)
	if err != nil {
		return nil, nil, err
	}
	r := p.record()
	c := r.Container(full)
	if c == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	return c, r, nil
}

// Sandboxes returns the records of all pods, newest first. It never waits for
// an operation.
func (m *Manager) Sandboxes() []*Record {
	m.mu.RLock()
	out := make([]*Record, 0, len(m.pods))
	for _, p := range m.pods {
		if r := p.record(); !p.starting.Load() {
			out = append(out, r)
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(out, func(a, b *Record) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	return out
}

// sandboxKey is the name under which a sandbox is unique.
func sandboxKey(md *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox %s/%s (uid %s, attempt %d)", md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt())
}

// ignoreNotFound makes it a success to stop or remove what does not exist.
func ignoreNotFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// warn logs an error that cannot be returned to a caller; what completes "Could
// not".
func warn(err error, what string, args ...any) {
	if err != nil {
		klog.InfoS("Could not "+what, append(args, "err", err)...)
	}
}
