package pod

import (
	"context"
	"time"

	"crisp/runtime/hook"
)

// RunningHook is a hook that an operation waits for.
type RunningHook struct {
	// Hook is its kind, program and source.
	Hook string `json:"hook"`
	// PID is its process, 0 if it is not known.
	PID   int       `json:"pid,omitempty"`
	Began time.Time `json:"began"`
	// Limit is how long it may run until it is killed, in nanoseconds.
	Limit time.Duration `json:"limit"`
	// Output is the end of what it has printed so far.
	Output string `json:"output,omitempty"`
}

// running is the hook that runs in an operation that is tracked. Nil does nothing.
type running struct {
	in      *tracked
	hook    RunningHook // guarded by in.of.mu
	printed func() string
}

// await notes a hook that the operation waits for which a context belongs to. It
// returns nil if there is no such operation.
func await(ctx context.Context, h hook.Hook, printed func() string) *running {
	t, ok := ctx.Value(trackedKey{}).(*tracked)
	if !ok {
		return nil
	}
	r := &running{in: t, hook: RunningHook{Hook: h.String(), Began: time.Now(), Limit: h.Limit()}, printed: printed}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.hook = r
	return r
}

// as notes the hook's process.
func (r *running) as(pid int) {
	if r == nil {
		return
	}
	r.in.of.mu.Lock()
	defer r.in.of.mu.Unlock()
	r.hook.PID = pid
}

// end notes that the hook has ended.
func (r *running) end() {
	if r == nil {
		return
	}
	r.in.of.mu.Lock()
	defer r.in.of.mu.Unlock()
	r.in.hook = nil
}

// nowLocked is the hook with what it has printed.
func (r *running) nowLocked() *RunningHook {
	if r == nil {
		return nil
	}
	h := r.hook
	h.Output = r.printed()
	return &h
}
