package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"crisp/runtime/cgroup"
	"crisp/runtime/durable"
	"crisp/runtime/failpoint"
	"crisp/runtime/keeper/table"
	"crisp/runtime/span"
)

// pod is a record with the descriptors behind it.
type pod struct {
	m *Manager
	// starting hides the pod from lists until its first operation has ended.
	starting atomic.Bool
	// op serialises operations with several effects; a channel, so that a
	// waiting caller can be cancelled.
	op  chan struct{}
	rec atomic.Pointer[Record]

	// mu guards the fields below and orders the writers of rec. It is held
	// across one small file write, never across an operation.
	mu         sync.Mutex
	gone       bool
	journal    *durable.Journal
	namespaces map[string]*os.File // by type: user, net, ipc, uts, mnt, pid
	processes  map[string]*process // by container id, while and after running
	// row is what the keeper holds for the pod: its namespaces and, if it has
	// one, its first process. firstEnded is closed when that has exited; nil
	// without.
	row        *table.Row
	firstEnded chan struct{}
	// checkpoints are those, and commits, that are under way or waiting, as what ends them and the IDs
	// of the containers.
	checkpoints map[*context.CancelCauseFunc][]string
	// ending counts the stops of each container that are under way, by its ID.
	ending map[string]int
	// known is what the plugins know of the pod.
	known known
}

// process is a container's first process and the descriptors that belong to it.
type process struct {
	// row is the process in the keeper, from its start on; set under the pod's
	// op, before the container is recorded as running.
	row *table.Row
	// started is closed once the start is recorded, exited once the exit is.
	started, exited chan struct{}
	// failure is why the only start failed; guarded by the pod's op.
	failure error
	// unrecorded receives why the exit cannot be written to disk, for a caller
	// that waits for it.
	unrecorded chan error
	// end handles several reports of the same exit only once.
	end sync.Once
	// stdin is the write end of the input pipe, or the terminal.
	stdin *os.File
	// reopening is held while the log is reopened.
	reopening sync.Mutex
	// rootfs is the detached root mount between create and start.
	rootfs *os.File
	group  *cgroup.Group // guarded by the pod's mu outside of its op
}

// groupOfProcess is a container's cgroup, nil for none, for a caller that
// does not have the pod's op.
func (p *pod) groupOfProcess(id string) *cgroup.Group {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr := p.processes[id]; pr != nil {
		return pr.group
	}
	return nil
}

func (p *pod) setGroup(pr *process, g *cgroup.Group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr.group = g
}

// newPod returns the pod of a record. Without a journal the record's next
// update starts one.
func newPod(m *Manager, r *Record, j *durable.Journal) *pod {
	if j == nil {
		j = durable.NewJournal(m.store.recordPath(r.ID))
	}
	p := &pod{m: m, journal: j, op: make(chan struct{}, 1), namespaces: map[string]*os.File{}, processes: map[string]*process{}}
	p.rec.Store(r)
	p.known.load(r)
	return p
}

func (p *pod) record() *Record { return p.rec.Load() }

// lock starts an operation; the returned function ends it.
func (p *pod) lock(ctx context.Context) (func(), error) {
	const stage = "wait for another operation on the pod"
	enter(ctx, stage, false)
	select {
	case p.op <- struct{}{}: // nothing to wait for
		enter(ctx, "", false)
		return func() { <-p.op }, nil
	default:
	}

	_, end := span.Start(ctx, stage)
	defer end(nil)
	select {
	case p.op <- struct{}{}:
		enter(ctx, "", false)
		return func() { <-p.op }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the running operation on sandbox %s: %w", p.record().ID, ctx.Err())
	}
}

// isGone reports whether the pod was removed.
func (p *pod) isGone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

// update writes a changed record to disk and then publishes it.
func (p *pod) update(change func(*Record)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return fmt.Errorf("sandbox %s: %w", p.record().ID, ErrNotFound)
	}
	old := p.record()
	next := old.clone()
	change(next)
	if err := failpoint.Between("write record", func() error { return save(p.journal, old, next) }); err != nil {
		return err
	}
	p.rec.Store(next)
	return nil
}

// note records a phase of the sandbox.
func (p *pod) note(phase string) error {
	return p.update(func(r *Record) { r.Phase = phase })
}

// recorder is note for the steps of a new sandbox. The sync of the first record
// starts immediately: when a step needs it, it is done, or nearly so. Which of
// the phases is on disk after a power cut does not matter, see [pod.phase].
func (p *pod) recorder() recorder {
	synced := sync.OnceValue(p.journal.Sync)
	first := true
	return func(phase string, wait bool) error {
		if err := p.note(phase); err != nil {
			return err
		}
		if first {
			first = false
			p.m.wg.Go(func() { synced() })
		}

		if !wait {
			return nil
		}
		return failpoint.Between("sync record", synced)
	}
}

// phase is the last step that may have run. After a reboot it may be any, as
// only the first record was synced.
func (p *pod) phase() string {
	r := p.record()
	if r.BootID != p.m.bootID {
		return ""
	}
	return r.Phase
}

// updateContainer changes one container's part of the record.
func (p *pod) updateContainer(id string, change func(*Container)) error {
	found := false
	err := p.update(func(r *Record) { found = r.edit(id, change) })
	if err == nil && !found {
		return fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	return err
}

func (p *pod) process(id string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.processes[id]
}

func (p *pod) setProcess(id string, pr *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.processes[id] = pr
}

// takeProcess removes a container's process from the pod.
func (p *pod) takeProcess(id string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := p.processes[id]
	delete(p.processes, id)
	return pr
}

func (p *pod) namespace(kind string) *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.namespaces[kind]
}

// setNamespaces takes ownership of the descriptors of the pod's namespaces.
func (p *pod) setNamespaces(ns map[string]*os.File) {
	p.mu.Lock()
	old := p.namespaces
	p.namespaces = ns
	p.mu.Unlock()
	for _, f := range old {
		f.Close()
	}
}

func newProcess() *process {
	return &process{started: make(chan struct{}), exited: make(chan struct{}), unrecorded: make(chan error, 1)}
}

// close closes the descriptors of a process.
func (pr *process) close() error {
	if pr == nil {
		return nil
	}
	if pr.row != nil {
		pr.row.Drop()
	}
	return closeFiles(pr.stdin, pr.rootfs)
}

// closeFiles closes files of which some may be nil, closed or the same.
func closeFiles(files ...*os.File) error {
	var errs []error
	for _, f := range files {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
