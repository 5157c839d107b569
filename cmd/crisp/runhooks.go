package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
)

// runID is the ID of a bundle's container in its keeper.
const runID = "run"

// errKeeper is the end of a keeper before that of what it runs.
var errKeeper = errors.New("the keeper exited before the container; check what killed it")

// kept is a bundle's container and its hooks in their keeper.
type kept struct {
	keeper   *client.Client
	launcher *launch.Launcher
	hooks    *launch.Hooks // nil without hooks
	about    hook.Container

	wg    sync.WaitGroup
	mu    sync.Mutex
	begun bool                        // guarded by mu; hooks are run, or the container
	runs  int                         // guarded by mu; hooks so far
	exits map[string]chan client.Exit // guarded by mu
	over  bool                        // guarded by mu; no more exits will be reported
}

// newKept follows the exits that the keeper reports, until it ends.
func newKept(keeper *client.Client, l *launch.Launcher, s *specs.Spec, state string) *kept {
	about := hook.Container{ID: runID + strconv.Itoa(os.Getpid()), Spec: s, Bundle: filepath.Join(state, "hooks", runID)}
	k := &kept{keeper: keeper, launcher: l, about: about, exits: map[string]chan client.Exit{}}
	if len(hook.List(s.Hooks, nil)) > 0 {
		k.hooks = &launch.Hooks{Container: about, Dir: state, Run: k.run}
	}
	k.wg.Go(k.follow)
	return k
}

// follow passes each exit to the one that waits for it.
func (k *kept) follow() {
	for e := range k.keeper.Events() {
		k.exit(e.ID) <- e
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
	for _, c := range k.exits {
		close(c)
	}
}

// exit returns the channel that gets the exit of an ID; it is closed when the
// keeper ends.
func (k *kept) exit(id string) chan client.Exit {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.exits[id]
	if c == nil {
		c = make(chan client.Exit, 1)
		k.exits[id] = c
		if k.over {
			close(c)
		}
	}
	return c
}

// run runs the process of a hook.
func (k *kept) run(ctx context.Context, h hook.Hook, r client.Request, _ func() string) (client.Exit, error) {
	k.mu.Lock()
	k.begun = true
	k.runs++
	r.ID = "hook-" + strconv.Itoa(k.runs)
	k.mu.Unlock()

	started, err := k.keeper.Start(ctx, r)
	if err != nil {
		return client.Exit{}, err
	}
	defer started.Close()
	e, err := launch.AwaitHook(ctx, started, k.exit(r.ID))
	if err == nil && e.ID == "" {
		err = errKeeper
	}
	return e, errors.Join(err, k.keeper.Forget(ctx, r.ID))
}

// poststart runs the poststart hooks of a container that has started.
func (k *kept) poststart(ctx context.Context, pid int) {
	k.mu.Lock()
	k.begun = true
	k.mu.Unlock()
	if err := k.launcher.RunHooks(ctx, k.hooks, hook.Poststart, pid); err != nil {
		fmt.Fprintln(os.Stderr, "crisp: warning:", err)
	}
}

// end runs the poststop hooks, also after a start that failed in a hook.
func (k *kept) end(ctx context.Context) error {
	k.mu.Lock()
	begun := k.begun
	k.mu.Unlock()
	if k.hooks == nil || !begun {
		return nil
	}
	if err := k.launcher.RunHooks(ctx, k.hooks, hook.Poststop, 0); err != nil {
		fmt.Fprintln(os.Stderr, "crisp: warning:", err)
	}
	return k.hooks.Container.RemoveBundle(ctx)
}
