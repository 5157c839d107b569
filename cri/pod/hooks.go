package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"crisp/cri/pod/stdio"
	"crisp/runtime/failpoint"
	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/keeper/table"
	"crisp/runtime/launch"
)

// hooksDir is the directory of the state that has the bundles of containers
// with hooks.
const hooksDir = "hooks"

// poststopMark is in the IDs that poststop hooks have in the keeper, between
// that of the container and the hook's number: so a hook that an earlier daemon
// has begun is found, and not run again.
const poststopMark = "-poststop-"

// hookTries is how often a poststop hook is started whose keeper dies.
const hookTries = 3

// hooks is how a container's hooks are run, nil if it has none.
func (p *pod) hooks(c *Container, s *specs.Spec) *launch.Hooks {
	if len(hook.List(s.Hooks, nil)) == 0 {
		return nil
	}
	return &launch.Hooks{Container: p.about(c, s), Dir: p.m.StateDir, Sources: c.HookSources, Run: p.runHook}
}

// about is what hooks, and the agent of a seccomp filter, are told of a container.
func (p *pod) about(c *Container, s *specs.Spec) hook.Container {
	return hook.Container{ID: c.ID, Spec: s, Bundle: filepath.Join(p.m.StateDir, hooksDir, c.ID)}
}

// oweHooks records that hooks of a container are about to run for the first
// time, so that its poststop hooks are owed from now on.
func (p *pod) oweHooks(c *Container, hs *launch.Hooks) error {
	if hs == nil || c.HooksBegun {
		return nil
	}
	return p.updateContainer(c.ID, func(c *Container) { c.HooksBegun = true })
}

// runHook runs the process of a hook during a container's start, or after it.
func (p *pod) runHook(ctx context.Context, h hook.Hook, r client.Request, printed func() string) (e client.Exit, err error) {
	runs := await(ctx, h, printed)
	defer runs.end()
	err = failpoint.Between(string(h.Kind)+" hook", func() error {
		r.ID = p.record().ID[:16] + "-hook-" + newID()[:16]
		e, err = p.hookProcess(ctx, r, runs)
		return err
	})
	return e, err
}

// hookProcess runs the process of a hook in a row of the table, until it has
// exited or ctx ends.
func (p *pod) hookProcess(ctx context.Context, r client.Request, runs *running) (client.Exit, error) {
	exited := make(chan client.Exit, 1)
	row := p.m.table.Begin(r.ID, client.Exec, hookHooks(r.ID, exited))
	defer p.endHook(row)

	started, err := p.m.Keeper.Start(ctx, r)
	if err != nil {
		return client.Exit{}, err
	}
	runs.as(started.Pid)
	warn(row.Started(p.m.ctx, started), "hand a hook to the new keeper", "hook", r.ID)
	e, err := launch.AwaitHook(ctx, started, exited)
	if err != nil {
		return e, err
	}
	return exitOfHook(row, e)
}

// hookHooks pass the exit of a hook's process to a channel. If no keeper can
// hold it, the one that waits for it does so until the hook's time is over.
func hookHooks(id string, exited chan<- client.Exit) table.Hooks {
	return table.Hooks{
		Ended: func(e client.Exit) {
			select {
			case exited <- e:
			default: // already reported
			}
		},
		Lost: func(err error) { klog.ErrorS(err, "Could not hand a hook to the new keeper", "hook", id) },
	}
}

// exitOfHook completes the exit of a hook, which may be unknown if its keeper
// died.
func exitOfHook(row *table.Row, e client.Exit) (client.Exit, error) {
	e, known := row.Exit(e)
	if !known && e.Code == client.ExitUnknown {
		return e, errors.New("its exit status is unknown: the keeper died")
	}
	return e, nil
}

// endHook has the keeper forget a hook, for which the caller need not wait.
func (p *pod) endHook(row *table.Row) {
	row.Drop()
	p.m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.m.ctx), cleanTimeout)
		defer cancel()
		warn(p.m.Keeper.ForgetDying(ctx, row.ID(), nil), "forget a hook", "hook", row.ID())
	})
}

// poststart runs a started container's poststart hooks. Their failures are
// logged: the container runs.
func (p *pod) poststart(ctx context.Context, c *Container, hs *launch.Hooks, pid int) {
	if hs == nil || len(hook.List(hs.Container.Spec.Hooks, nil, hook.Poststart)) == 0 {
		return
	}
	err := p.stage(ctx, "run poststart hooks", func(ctx context.Context) error { return p.m.Launcher.RunHooks(ctx, hs, hook.Poststart, pid) })
	warn(err, "run poststart hooks of a container", "container", c.ID)
}

// owesPoststop reports whether a container has poststop hooks that have not
// run, or a bundle that is to be removed. After a reboot nothing is owed.
func (p *pod) owesPoststop(c *Container) bool {
	return c != nil && c.HooksBegun && !c.HooksEnded && p.record().BootID == p.m.bootID
}

// afterEnd runs the poststop hooks of a container that has exited, or whose
// start has failed, in the background.
func (p *pod) afterEnd(id string) {
	if !p.owesPoststop(p.record().Container(id)) {
		return
	}
	p.m.wg.Go(func() {
		warn(p.poststop(p.m.ctx, id), "run poststop hooks of a container", "container", id)
	})
}

// poststop runs the poststop hooks that a container owes. Their failures are
// logged. A caller waits for those that run already.
func (p *pod) poststop(ctx context.Context, id string) error {
	if !p.owesPoststop(p.record().Container(id)) {
		return nil
	}
	_, err := p.m.join(ctx, "poststop hooks of container "+id, p.operationOn("run poststop hooks of", id), func(ctx context.Context) (string, error) {
		return "", p.runPoststop(ctx, id)
	})
	return err
}

func (p *pod) runPoststop(ctx context.Context, id string) error {
	c := p.record().Container(id)
	if !p.owesPoststop(c) {
		return nil // another caller was faster
	}
	s, err := p.loadSpec(id)
	var unread *os.PathError
	switch {
	case errors.As(err, &unread) && !errors.Is(err, os.ErrNotExist):
		return err
	case err != nil:
		// Nobody knows the hooks any more: the container's end cannot wait for them.
		klog.ErrorS(err, "Poststop hooks of a container are lost", "container", id)
		return p.endPoststop(ctx, id, p.about(c, nil))
	}

	hs := p.hooks(c, s)
	for i, h := range hook.List(s.Hooks, c.HookSources, hook.Poststop) {
		if i < c.PoststopDone {
			continue
		}
		err := failpoint.Between("poststop hook", func() error { return p.oncePoststop(ctx, hs, h, id, i) })
		if p.m.ctx.Err() != nil {
			return fmt.Errorf("%s: %w", h, p.m.ctx.Err()) // the next daemon waits for it
		}
		warn(err, "run a hook", "container", id)
		if err := p.updateContainer(id, func(c *Container) { c.PoststopDone = i + 1 }); err != nil {
			return err
		}
		p.forgetPoststop(ctx, id, i)
	}

	return p.endPoststop(ctx, id, hs.Container)
}

// endPoststop removes the bundle of a container that owes no hook any more.
func (p *pod) endPoststop(ctx context.Context, id string, about hook.Container) error {
	if err := about.RemoveBundle(ctx); err != nil {
		return err
	}
	return p.updateContainer(id, func(c *Container) { c.HooksEnded = true })
}

func poststopID(id string, i int) string { return id + poststopMark + strconv.Itoa(i) }

func (p *pod) forgetPoststop(ctx context.Context, id string, i int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	name := poststopID(id, i)
	warn(p.m.Keeper.ForgetDying(ctx, name, nil), "forget a hook", "hook", name)
}

// oncePoststop runs poststop hook number i, or waits for its end if an earlier
// daemon has begun it.
func (p *pod) oncePoststop(ctx context.Context, hs *launch.Hooks, h hook.Hook, id string, i int) error {
	own := *hs
	own.Run = func(ctx context.Context, h hook.Hook, r client.Request, printed func() string) (client.Exit, error) {
		runs := await(ctx, h, printed)
		defer runs.end()
		r.ID = poststopID(id, i)
		return p.poststopProcess(ctx, r, runs)
	}
	return p.m.Launcher.RunHook(ctx, &own, h, 0)
}

// poststopProcess runs the process of a poststop hook. When the daemon stops,
// the hook continues.
func (p *pod) poststopProcess(ctx context.Context, r client.Request, runs *running) (client.Exit, error) {
	exited := make(chan client.Exit, 1)
	hooks := hookHooks(r.ID, exited)
	row := p.m.table.Begin(r.ID, client.Exec, hooks)
	row.Hold(nil, func() []client.Named { return r.Keep })
	defer func() { row.Drop() }()

	var started *client.Started
	var err error
	for range hookTries {
		if started, err = p.m.Keeper.Start(ctx, r); !errors.Is(err, client.ErrLost) {
			break
		}
	}

	switch {
	case errors.Is(err, client.ErrExists):
		adopted, end, err := p.adoptPoststop(ctx, r.ID, hooks)
		if err != nil {
			return client.Exit{}, err
		}
		defer end()
		row.Drop() // now that the other gets the exit
		row = adopted
	case err != nil:
		return client.Exit{}, err
	default:
		runs.as(started.Pid)
		warn(row.Started(p.m.ctx, started), "hand a hook to the new keeper", "hook", r.ID)
	}

	select {
	case e := <-exited:
		return exitOfHook(row, e)
	case <-p.m.ctx.Done():
		return client.Exit{}, p.m.ctx.Err()
	case <-ctx.Done():
		return launch.AwaitHook(ctx, &client.Started{PidFD: row.PidFD()}, exited)
	}
}

// adoptPoststop makes the row of a hook that an earlier daemon has begun, and
// reports its exit if it has ended. Its output is dropped until end is called.
func (p *pod) adoptPoststop(ctx context.Context, id string, hooks table.Hooks) (row *table.Row, end func(), err error) {
	list, err := p.m.Keeper.Client().List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("find hook %s: %w", id, err)
	}

	i := slices.IndexFunc(list, func(e client.Entry) bool { return e.ID == id })
	for k := range list {
		if k != i {
			list[k].Close()
		}
	}
	if i < 0 {
		return nil, nil, fmt.Errorf("hook %s: %w", id, ErrNotFound)
	}

	e := &list[i]
	row = p.m.table.Restore(e, hooks)
	if e.Exit != nil {
		hooks.Ended(*e.Exit)
	}
	out := e.Kept[launch.HookOutput]
	if out == nil {
		return row, func() {}, nil
	}

	row.Hold(nil, func() []client.Named { return []client.Named{{Name: launch.HookOutput, File: out}} })
	if out, err = stdio.Polled(out); err != nil {
		row.Drop()
		return nil, nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, out) }) // it ends with the last writer, or when it is closed
	return row, func() { out.Close(); wg.Wait() }, nil
}

// sweepBundles makes the directory of bundles, and removes those of containers
// without a record.
func (m *Manager) sweepBundles(ctx context.Context) error {
	dir := filepath.Join(m.StateDir, hooksDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create directory for bundles of hooks: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list bundles of hooks: %w", err)
	}

	for _, e := range entries {
		m.mu.RLock()
		known := m.containers[e.Name()] != nil
		m.mu.RUnlock()
		if !known {
			warn(removeTree(ctx, filepath.Join(dir, e.Name())), "remove a bundle of hooks", "container", e.Name())
		}
	}
	return nil
}

// isPoststop reports whether an ID in the keeper is that of a poststop hook
// which its container still owes.
func (m *Manager) isPoststop(id string) bool {
	container, number, found := strings.Cut(id, poststopMark)
	if !found {
		return false
	}

	m.mu.RLock()
	p := m.containers[container]
	m.mu.RUnlock()
	i, err := strconv.Atoi(number)
	if p == nil || err != nil {
		return false
	}
	c := p.record().Container(container)
	return p.owesPoststop(c) && i >= c.PoststopDone
}

// endHooks is the end of a container's hooks when it is removed.
func (k *creation) endHooks(ctx context.Context) error {
	c := k.record()
	if c == nil || !k.p.owesPoststop(c) {
		return nil
	}
	if err := k.p.poststop(ctx, c.ID); err != nil {
		return fmt.Errorf("run poststop hooks: %w", err)
	}
	return nil
}
