package pod

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/span"
	"crisp/runtime/untrusted"
)

// Operation is a change of a pod or container that is under way, or was the last
// one to fail.
type Operation struct {
	// What is done, "run pod", to what: Pod is NAMESPACE/NAME, Container a name.
	// The IDs are empty where they are not known yet.
	What        string `json:"what"`
	Pod         string `json:"pod"`
	Container   string `json:"container,omitempty"`
	SandboxID   string `json:"sandboxID,omitempty"`
	ContainerID string `json:"containerID,omitempty"`

	Began time.Time `json:"began"`
	// Stage is what it is doing since StageBegan, or was doing when it failed: a
	// step of a table, or a wait. Undo means that the step is being undone.
	Stage      string    `json:"stage,omitempty"`
	Undo       bool      `json:"undo,omitempty"`
	StageBegan time.Time `json:"stageBegan,omitzero"`
	// Hook is the hook that runs now, nil without one.
	Hook *RunningHook `json:"runningHook,omitempty"`
}

// Event is what happened to a pod or container.
type Event struct {
	Time time.Time `json:"time"`
	// What is a change, "started", or the operation that failed, with its Error.
	What        string `json:"what"`
	Pod         string `json:"pod"`
	Container   string `json:"container,omitempty"`
	SandboxID   string `json:"sandboxID,omitempty"`
	ContainerID string `json:"containerID,omitempty"`
	Stage       string `json:"stage,omitempty"`
	Error       string `json:"error,omitempty"`
	// Image is what was pulled for the pod.
	Image string `json:"image,omitempty"`
}

const (
	// maxEvents is how many events are remembered, of all pods, and maxEventError
	// the length of an error in one, in bytes.
	maxEvents     = 256
	maxEventError = 4 << 10
	// maxEventImage is the length of the name of an image in one, in bytes.
	maxEventImage = 512
)

// activity is what is done to pods and what happened to them last, for people who
// ask why.
type activity struct {
	mu      sync.Mutex
	running map[*tracked]bool // guarded by mu
	past    []Event           // guarded by mu; the oldest first
}

// tracked is an operation under way.
type tracked struct {
	of   *activity
	op   Operation // guarded by of.mu
	hook *running  // guarded by of.mu
}

// trackedKey is the context's key of an operation.
type trackedKey struct{}

// begin tracks an operation until end is called with its error. Its stages are
// those entered with the context. In the trace of its call it is a part of its own,
// which may end after the call.
func (a *activity) begin(ctx context.Context, op Operation) (_ context.Context, end func(error)) {
	ctx, traced := span.Start(ctx, op.What, "pod", op.Pod, "container", op.Container)
	op.Began = time.Now()
	t := &tracked{of: a, op: op}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running == nil {
		a.running = map[*tracked]bool{}
	}
	a.running[t] = true

	return context.WithValue(ctx, trackedKey{}, t), func(err error) {
		traced(err)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.running, t)
		if op := t.op; err != nil {
			stage := op.Stage
			var failed *stepError
			if errors.As(err, &failed) { // the rollback has entered other stages
				stage = failed.step
			}
			a.noteLocked(Event{
				What: op.What + " failed", Pod: op.Pod, Container: op.Container, SandboxID: op.SandboxID, ContainerID: op.ContainerID,
				Stage: stage, Error: untrusted.Of(err.Error()).Message(maxEventError),
			})
		}
	}
}

// enter notes the stage of the operation that a context belongs to, if any.
func enter(ctx context.Context, stage string, undo bool) {
	t, ok := ctx.Value(trackedKey{}).(*tracked)
	if !ok {
		return
	}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.op.Stage, t.op.Undo, t.op.StageBegan = stage, undo, time.Now()
}

// identify adds the ID that an operation's sandbox got.
func (a *activity) identify(ctx context.Context, sandboxID string) {
	t, ok := ctx.Value(trackedKey{}).(*tracked)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t.op.SandboxID = sandboxID
}

func (a *activity) note(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.noteLocked(e)
}

func (a *activity) noteLocked(e Event) {
	e.Time = time.Now()
	if len(a.past) == maxEvents {
		copy(a.past, a.past[1:])
		a.past = a.past[:maxEvents-1]
	}
	a.past = append(a.past, e)
}

// NotePull remembers that the pull of an image for a pod has failed, or that it has
// succeeded after that. Other pulls are no news.
func (m *Manager) NotePull(of *runtimeapi.PodSandboxMetadata, image string, err error) {
	e := Event{What: "image pulled", Pod: sandboxName(of), Image: untrusted.Of(image).Name(maxEventImage)}
	if err != nil {
		e.What, e.Error = "pull image failed", untrusted.Of(err.Error()).Message(maxEventError)
	}
	m.activity.mu.Lock()
	defer m.activity.mu.Unlock()
	if err != nil || m.activity.failedLocked(e) {
		m.activity.noteLocked(e)
	}
}

// failedLocked reports whether the last pull of the same image for the same pod failed.
func (a *activity) failedLocked(e Event) bool {
	for _, past := range slices.Backward(a.past) {
		if past.Image == e.Image && past.Pod == e.Pod {
			return past.Error != ""
		}
	}
	return false
}

// Operations lists what is under way, the oldest first.
func (m *Manager) Operations() []Operation {
	m.activity.mu.Lock()
	defer m.activity.mu.Unlock()
	list := make([]Operation, 0, len(m.activity.running))
	for t := range m.activity.running {
		op := t.op
		op.Hook = t.hook.nowLocked()
		list = append(list, op)
	}
	slices.SortFunc(list, func(a, b Operation) int { return a.Began.Compare(b.Began) })
	return list
}

// History lists what happened last, the oldest first. It does not outlive the daemon.
func (m *Manager) History() []Event {
	m.activity.mu.Lock()
	defer m.activity.mu.Unlock()
	return slices.Clone(m.activity.past)
}

// Name is NAMESPACE/NAME.
func (r *Record) Name() string { return sandboxName(r.Config.Msg.GetMetadata()) }

// operation describes an operation on the pod.
func (p *pod) operation(what string) Operation {
	r := p.record()
	return Operation{What: what + " pod", Pod: r.Name(), SandboxID: r.ID}
}

// operationOn describes an operation on a container of the pod.
func (p *pod) operationOn(what, id string) Operation {
	r := p.record()
	op := Operation{What: what + " container", Pod: r.Name(), SandboxID: r.ID, ContainerID: id}
	if c := r.Container(id); c != nil {
		op.Container = c.Config.Msg.GetMetadata().GetName()
	}
	return op
}

// stepError is the failure of a step.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// Processes lists those in a container's cgroup, none if it has exited.
func (m *Manager) Processes(id string) []int {
	p, id, err := m.container(id)
	if err != nil {
		return nil
	}
	c := p.record().Container(id)
	if c == nil {
		return nil
	}

	group := p.groupOfProcess(id)
	if group == nil { // not since the daemon has started
		if group, err = m.Cgroups.Open(c.CgroupPath); err != nil {
			return nil
		}
	}
	pids, err := group.Pids()
	if err != nil {
		return nil
	}
	return pids
}
