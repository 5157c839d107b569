package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
)

// recoverTimeout bounds the recovery of one pod before the daemon serves.
const recoverTimeout = 10 * time.Second

// loseTimeout bounds the wait for processes that outlived their holders.
const loseTimeout = 2 * time.Second

// verdict is the decision on a pod of the last daemon.
type verdict int

const (
	// keepPod: as recorded.
	keepPod verdict = iota
	// undoPod: its creation was interrupted, or failed and was not undone.
	undoPod
	// unreadyPod: recorded as ready, but its namespaces no longer exist.
	unreadyPod
	// removePod: it was to be restored, and lacks containers.
	removePod
)

// facts are the state of a pod in the kernel and the keeper.
type facts struct {
	sameBoot bool
	// held means that the keeper has the sandbox's namespaces.
	held bool
	// pauseEnded means that the pod's first process, if it has one, has exited.
	pauseEnded bool
}

// judgeSandbox decides on a sandbox; it depends only on its arguments.
func judgeSandbox(r *Record, f facts) verdict {
	switch {
	case r.begun():
		return undoPod
	case r.Restoring:
		return removePod
	case !r.Ready():
		return keepPod
	case !f.sameBoot, !f.held, r.Pause != nil && f.pauseEnded:
		return unreadyPod
	}
	return keepPod
}

// containerVerdict is the decision on a container.
type containerVerdict int

const (
	keepContainer containerVerdict = iota
	// undoContainer: its creation was interrupted.
	undoContainer
	// adoptContainer: it runs; take over its process.
	adoptContainer
	// endContainer: its exit is known and not yet recorded.
	endContainer
	// loseContainer: it ran and has exited, with unknown exit status.
	loseContainer
)

// judgeContainer decides on a container, given the keeper's entry or nil, and
// whether there are processes in its cgroup.
func judgeContainer(c *Container, sameBoot bool, e *client.Entry, populated bool) containerVerdict {
	switch {
	case c.Left:
		return keepContainer
	case c.Phase != phaseReady:
		return undoContainer
	case c.FinishedAt != 0:
		return keepContainer
	case e != nil && e.Exit != nil:
		return endContainer
	case e != nil && sameBoot:
		return adoptContainer // also one whose start was not yet recorded
	case c.StartedAt != 0, populated:
		return loseContainer
	}
	return keepContainer
}

// recover loads the records and reconciles them with the machine.
func (m *Manager) recover(ctx context.Context) error {
	records, err := m.store.load()
	if err != nil {
		return err
	}
	m.dropStages()
	m.dropDrafts()
	m.forgetGone()

	list, err := m.Keeper.Client().List(ctx)
	if err != nil {
		return fmt.Errorf("list what the keeper holds: %w", err)
	}

	entries := map[string]*client.Entry{}
	recorded, err := m.Keeper.RecordedExits()
	warn(err, "read recorded exits")
	for id, e := range recorded {
		entries[id] = &client.Entry{ID: id, Kind: e.Kind, Exit: &e}
	}

	for i := range list {
		entries[list[i].ID] = &list[i]
	}
	var wg sync.WaitGroup
	for _, l := range records {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			defer cancel()
			p := m.revive(l, entries)
			warn(p.reconcile(ctx, l.record != nil, entries), "recover a pod", "sandbox", l.id)
		})
	}
	wg.Wait()
	m.dropUnknown(ctx, entries)
	m.discardUnknown(ctx)
	m.sweepNetwork(ctx)

	return m.sweepBundles(ctx)
}

// sweepNetwork releases addresses of pods without a record. It completes before
// new pods are created, which it would not know.
func (m *Manager) sweepNetwork(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	m.mu.RLock()
	ids := slices.Collect(maps.Keys(m.pods))
	m.mu.RUnlock()
	warn(m.Network.Sweep(ctx, ids), "release the addresses of pods without a record")
}

// revive returns the pod of a record. One whose record cannot be read is listed
// as not ready under its directory's name, so that it can be removed.
func (m *Manager) revive(l loaded, entries map[string]*client.Entry) *pod {
	r := l.record
	if r == nil {
		r = m.salvage(l, entries[l.id])
	}

	p := newPod(m, r, l.journal)
	if e := entries[r.ID]; e != nil && e.Namespaces != nil {
		p.setNamespaces(e.Namespaces)
		// Its process may not be recorded.
		p.hold(m.table.Restore(e, p.sandboxHooks()), e.PidFD != nil && e.Exit == nil)
	}

	m.levels.Hold(r.SELinuxLevel)
	m.register(p)
	return p
}

// reconcile executes the verdicts on a pod and its containers.
func (p *pod) reconcile(ctx context.Context, readable bool, entries map[string]*client.Entry) error {
	if !readable {
		return p.setAside(ctx)
	}
	r := p.record()
	e := entries[r.ID]
	f := facts{sameBoot: r.BootID == p.m.bootID, held: e != nil && len(e.Namespaces) > 0, pauseEnded: e == nil || e.Exit != nil}
	var errs []error
	for _, c := range r.Containers {
		if err := p.reconcileContainer(ctx, c, f.sameBoot, entries[c.ID]); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.ID, err))
		}
	}

	switch judgeSandbox(r, f) {
	case removePod:
		p.m.wg.Go(func() { p.m.removeRestored(r.ID) })
	case undoPod:
		errs = append(errs, p.finishUndo(ctx))
	case keepPod:
		frozen := slices.ContainsFunc(r.Containers, func(c *Container) bool { return c.Frozen })
		if f.sameBoot && r.Ready() && r.Moving == nil && (frozen || len(r.WantIPs) > 0) {
			warn(p.releaseNetwork(), "let a pod's packets through", "sandbox", r.ID)
		}
	case unreadyPod:
		errs = append(errs, p.update(func(r *Record) {
			r.Phase, r.Reason = phaseStopping, "its namespaces did not outlive their holders"
		}))
	}

	return errors.Join(errs...)
}

// maxRemoveWait is the longest time between two attempts to remove a pod.
const maxRemoveWait = time.Minute

// removeRestored removes a pod whose restore was interrupted. Nobody else may know that it
// is there, so it tries until it succeeds or the daemon ends.
func (m *Manager) removeRestored(id string) {
	for wait := time.Second; ; wait = min(2*wait, maxRemoveWait) {
		err := m.RemoveSandbox(m.ctx, id)
		if err == nil || m.ctx.Err() != nil {
			return
		}
		warn(err, "remove a pod whose restore was interrupted; will retry", "sandbox", id, "wait", wait)
		select {
		case <-time.After(wait):
		case <-m.ctx.Done():
			return
		}
	}
}

// finishUndo undoes a pod's creation. It continues if ctx ends first, and
// RunSandbox of the same pod waits for it in undo. The result is logged there,
// since no caller may wait by then: an error only means that it continues.
func (p *pod) finishUndo(ctx context.Context) error {
	r := p.record()
	// With a reason it was listed before, so that it can be removed.
	p.starting.Store(r.Reason == "")
	// Several records may have the name of one pod, so that is no key.
	_, err := p.m.join(ctx, "undo of sandbox "+r.ID, p.operation("undo the creation of"), func(ctx context.Context) (string, error) {
		defer p.starting.Store(false)
		warn(p.undo(ctx), "undo a pod's creation", "sandbox", r.ID)
		return "", nil
	})
	return err
}

func (p *pod) reconcileContainer(ctx context.Context, c *Container, sameBoot bool, e *client.Entry) error {
	if unrestored(c, e) {
		err := p.release(ctx, e)
		ctx, cancel := context.WithTimeout(ctx, loseTimeout)
		defer cancel()
		return errors.Join(err, p.lose(ctx, c, restoreLost()))
	}
	verdict := judgeContainer(c, sameBoot, e, c.StartedAt == 0 && p.populated(c))
	if verdict == adoptContainer || verdict == endContainer {
		if err := p.adopt(c, e); err != nil {
			return err
		}
		if e.Exit != nil {
			p.containerExited(c.ID, *e.Exit)
		} else if c.Frozen && p.record().Moving == nil {
			p.m.wg.Go(func() { p.resume(p.m.ctx, c) })
		}
		return nil
	}

	if err := p.release(ctx, e); err != nil {
		return err
	}
	switch verdict {
	case keepContainer:
		if c.FinishedAt != 0 {
			p.afterEnd(c.ID)
		}
	case undoContainer:
		if err := p.undoContainer(ctx, c); err != nil {
			return errors.Join(err, p.updateContainer(c.ID, func(c *Container) { c.Left = true }))
		}
	case loseContainer:
		// One that could not be killed is retried when it is stopped.
		ctx, cancel := context.WithTimeout(ctx, loseTimeout)
		defer cancel()
		return p.lose(ctx, c, keeperLost())
	}

	return nil
}

// populated reports whether a container has processes, as it may though its
// start was not recorded.
func (p *pod) populated(c *Container) bool {
	group, err := p.m.Cgroups.Open(c.CgroupPath)
	if err != nil {
		return false
	}
	pids, err := group.Pids()
	return err == nil && len(pids) > 0
}

// release drops what the keeper holds for a container that no longer needs it.
func (p *pod) release(ctx context.Context, e *client.Entry) error {
	if e == nil {
		return nil
	}
	defer e.Close()
	if e.PidFD != nil && e.Exit == nil {
		if err := client.Signal(e.PidFD, unix.SIGKILL); err != nil {
			return err
		}
	}
	return p.m.forgetDying(ctx, e.ID, nil)
}

// adopt takes over a process that an earlier daemon started.
func (p *pod) adopt(c *Container, e *client.Entry) error {
	pr := newProcess()
	pr.row = p.m.table.Restore(e, p.containerHooks(c.ID))
	if pr.stdin = e.Kept["stdin"]; e.Terminal == nil {
		pr.row.Hold(e.Log, pr.keep)
	} else if c.Config.Msg.GetStdin() {
		pr.stdin = e.Terminal
	}

	group, err := p.m.Cgroups.Open(c.CgroupPath)
	if err == nil {
		group.WatchOOM()
		p.setGroup(pr, group)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.forgetCheckpoint(c)

	p.setProcess(c.ID, pr)
	close(pr.started)
	if c.StartedAt != 0 {
		return nil
	}

	identity, err := identify(e.Pid)
	if err != nil {
		identity = &Process{Pid: e.Pid}
	}
	return p.updateContainer(c.ID, func(c *Container) {
		c.StartedAt, c.Process = e.StartedAt.UnixNano(), identity
	})
}

// unrestored reports whether the last daemon died while a container was restored. CRIU,
// which is the container's process until that is done, is in no PID namespace of the
// container's; one that has ended may have been CRIU.
func unrestored(c *Container, e *client.Entry) bool {
	if !c.Checkpoint || c.Phase != phaseReady || c.StartedAt != 0 || e == nil {
		return false
	}
	if e.Exit != nil || e.PidFD == nil {
		return true
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return false
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", e.Pid))
	return err != nil || its == own
}

// loss is how a container has ended that nobody held.
type loss struct {
	code            int32
	reason, message string
}

func keeperLost() loss {
	return loss{exitUnknown, reasonUnknown, "exit status unknown: the keeper was dead when the daemon started"}
}

func restoreLost() loss {
	return loss{exitStartError, reasonStartError, "the daemon was killed while the container was restored"}
}

// lose kills what may be left of a container whose holder has died.
func (p *pod) lose(ctx context.Context, c *Container, l loss) error {
	defer p.afterEnd(c.ID)
	if group, err := p.m.Cgroups.Open(c.CgroupPath); err == nil {
		if err := p.m.killGroup(ctx, group); err != nil {
			return err
		}
	}
	return p.updateContainer(c.ID, func(c *Container) {
		c.FinishedAt, c.ExitCode, c.Reason, c.Message = time.Now().UnixNano(), l.code, l.reason, l.message
		if c.StartedAt == 0 { // the start was not recorded
			c.StartedAt = c.FinishedAt
		}
	})
}

// discardUnknown removes the writable layers of containers without a record.
func (m *Manager) discardUnknown(ctx context.Context) {
	for _, id := range m.Images.Containers() {
		m.mu.RLock()
		known := m.containers[id] != nil
		m.mu.RUnlock()
		if !known {
			warn(m.Images.Discard(id), "discard a layer without a record", "container", id)
		}
	}
}

// dropUnknown has the keeper forget entries without a record, such as exec
// sessions of the last daemon.
func (m *Manager) dropUnknown(ctx context.Context, entries map[string]*client.Entry) {
	for _, e := range entries {
		m.mu.RLock()
		known := m.pods[e.ID] != nil || m.containers[e.ID] != nil
		m.mu.RUnlock()
		if known {
			continue
		}
		if m.isPoststop(e.ID) { // its run is taken up, or it has ended
			e.Close()
			continue
		}

		if e.PidFD != nil {
			warn(client.KillGroup(e.PidFD), "kill a process without a record", "id", e.ID)
		}
		e.Close()

		// One that is slow to die is forgotten when its exit is reported.
		if err := m.Keeper.Forget(ctx, e.ID); !errors.Is(err, client.ErrRunning) {
			warn(err, "forget an entry without a record", "id", e.ID)
		}
	}
}
