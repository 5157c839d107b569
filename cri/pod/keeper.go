package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
	"crisp/runtime/orphan"
)

// keeperRetry is how long the daemon waits before it tries again to start a keeper.
const keeperRetry = time.Second

// keeperPatience is how long a request waits for another keeper, which takes
// seconds to take over on a machine that is overloaded.
const keeperPatience = 10 * time.Second

// upgradeTimeout bounds an upgrade of the keeper.
const upgradeTimeout = 20 * time.Second

// forgetRetry is the time between attempts to forget a process that dies.
const forgetRetry = 10 * time.Millisecond

// forgetKills is after how many attempts a process does evidently not die.
const forgetKills = 10

// orphanTimeout is how long the end of an orphan may take to be noticed here
// once the keeper or a SIGKILL told it.
const orphanTimeout = 2 * time.Second

// Keeper is the keeper of a state directory, or another one once that has died.
// It starts processes for package launch.
type Keeper struct {
	stateDir, binary string

	starts sync.RWMutex // read by each start under way, written by an upgrade

	mu      sync.Mutex
	current *client.Client // guarded by mu
	next    chan struct{}  // guarded by mu; closed when there is another one
}

// ConnectKeeper connects to the keeper of a state directory and starts it if
// there is none; an empty binary means the one beside the running program.
func ConnectKeeper(ctx context.Context, stateDir, binary string) (*Keeper, error) {
	c, err := client.Connect(ctx, stateDir, binary)
	if err != nil {
		return nil, err
	}
	return &Keeper{stateDir: stateDir, binary: binary, current: c, next: make(chan struct{})}, nil
}

// Client is the connection to the present keeper.
func (k *Keeper) Client() *client.Client {
	c, _ := k.present()
	return c
}

func (k *Keeper) present() (*client.Client, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current, k.next
}

// replace makes c the present keeper.
func (k *Keeper) replace(c *client.Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = c
	close(k.next)
	k.next = make(chan struct{})
}

// insist makes a request that may be made twice, and once more to the next
// keeper if the present one dies over it.
func (k *Keeper) insist(ctx context.Context, request func(*client.Client) error) error {
	return k.insistOn(ctx, client.ErrLost, request)
}

// insistOn makes a request, and once more to the next keeper if it fails with
// the given kind of a lost connection.
func (k *Keeper) insistOn(ctx context.Context, lost error, request func(*client.Client) error) error {
	late := time.NewTimer(keeperPatience)
	defer late.Stop()
	for {
		c, next := k.present()
		err := request(c)
		if !errors.Is(err, lost) {
			return err
		}

		select {
		case <-next:
		case <-ctx.Done():
			return err
		case <-late.C:
			return err
		}
	}
}

// Start runs a plan at the present keeper.
func (k *Keeper) Start(ctx context.Context, r client.Request) (*client.Started, error) {
	if r.Kind != client.Exec { // its caller does
		defer k.holdProgram()()
	}
	var started *client.Started
	err := k.insistOn(ctx, client.ErrUnsent, func(c *client.Client) (err error) {
		started, err = c.Start(ctx, r)
		return err
	})
	return started, err
}

// holdProgram keeps the keeper from being upgraded until the returned function
// is called.
func (k *Keeper) holdProgram() (release func()) {
	k.starts.RLock()
	return k.starts.RUnlock
}

// upgrade has the keeper go on as the program that belongs to this daemon. No
// start is under way meanwhile; other requests wait for the connection to come
// back. A keeper that cannot go on like that stays what it is.
func (k *Keeper) upgrade(ctx context.Context) error {
	k.starts.Lock()
	defer k.starts.Unlock()
	_, next := k.present()
	replaced, err := client.Upgrade(ctx, k.stateDir, k.binary)
	if err != nil || !replaced {
		return err
	}
	select {
	case <-next:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// Forget lets go of what is held under an id, also of an exit that a keeper
// which died recorded.
func (k *Keeper) Forget(ctx context.Context, id string) error {
	err := k.insist(ctx, func(c *client.Client) error { return c.Forget(ctx, id) })
	return errors.Join(err, client.RemoveExit(k.stateDir, id))
}

// forgetDying is Forget for a process that was killed: the keeper lets go of
// it when it is dead. During recovery nobody closes ended, so the keeper is
// asked again.
func (k *Keeper) forgetDying(ctx context.Context, id string, ended <-chan struct{}) error {
	tick := time.NewTicker(forgetRetry)
	defer tick.Stop()
	for tries := 1; ; tries++ {
		err := k.Forget(ctx, id)
		if !errors.Is(err, client.ErrRunning) {
			return err
		}

		if tries == forgetKills {
			warn(k.kill(ctx, id), "kill what the keeper holds", "id", id)
		}
		select {
		case <-ended:
			ended = nil
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnkillable, ctx.Err())
		}
	}
}

// kill kills a process that the keeper has started. The daemon may not know it,
// if the answer to its start was lost.
func (k *Keeper) kill(ctx context.Context, id string) error {
	entries, err := k.Client().List(ctx)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.ID == id && e.PidFD != nil && e.Exit == nil {
			err = signal(e.PidFD, unix.SIGKILL)
		}
		e.Close()
	}
	return err
}

// Close ends the connection. The keeper and what it holds go on.
func (k *Keeper) Close() error { return k.Client().Close() }

// followKeeper records the ends of processes that the keeper reports, and
// puts another keeper into the place of one that died.
func (m *Manager) followKeeper() {
	for m.ctx.Err() == nil {
		m.followExits(m.Keeper.Client())
		if m.ctx.Err() == nil {
			m.replaceKeeper()
		}
	}
}

// followExits returns when the keeper is gone or the manager closed.
func (m *Manager) followExits(c *client.Client) {
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				return
			}
			m.exited(e)
		case <-m.ctx.Done():
			return
		}
	}
}

// replaceKeeper starts a keeper and hands it what the daemon holds of all that
// the last one had: containers go on writing into the same pipes.
func (m *Manager) replaceKeeper() {
	klog.ErrorS(nil, "The connection to the keeper is lost; looking for it or starting another")
	m.orphans.Hurry()
	old := m.Keeper.Client()
	for {
		c, err := client.Connect(m.ctx, m.Keeper.stateDir, m.Keeper.binary)
		if err == nil {
			m.handOver(c, m.findSessions(c))
			m.Keeper.replace(c)
			warn(old.Close(), "close the connection to the keeper that died")
			return
		}

		klog.ErrorS(err, "Start another keeper")
		select {
		case <-time.After(keeperRetry):
		case <-m.ctx.Done():
			return
		}
	}
}

// handOver gives everything to a new keeper. Exits that the old one recorded
// and did not tell are taken as they are, and so are those that it holds if it
// is the old one after all: with the connection their report may be lost.
func (m *Manager) handOver(c *client.Client, held map[string]client.Exit) {
	exits := m.recordedExits()
	maps.Copy(exits, held)
	m.mu.RLock()
	pods := maps.Clone(m.pods)
	m.mu.RUnlock()
	for id, p := range pods {
		if err := p.handOver(m.ctx, c, exits); err != nil {
			klog.ErrorS(err, "Hand a pod to the new keeper", "sandbox", id)
		}
	}
}

// recordedExits are those that a dead keeper left on disk, by id.
func (m *Manager) recordedExits() map[string]client.Exit {
	list, err := client.ReadExits(m.Keeper.stateDir)
	warn(err, "read exits that were recorded")
	exits := map[string]client.Exit{}
	for _, e := range list {
		exits[e.ID] = e
	}
	return exits
}

func (p *pod) handOver(ctx context.Context, c *client.Client, exits map[string]client.Exit) error {
	var errs []error
	if !p.miss(&p.birth) {
		errs = append(errs, p.handOverSandbox(ctx, c, p.record(), exits))
	}
	for _, ctr := range p.record().Containers {
		pr := p.process(ctr.ID)
		if pr == nil || p.miss(&pr.birth) {
			continue
		}
		// The record may have been written since.
		errs = append(errs, p.handOverRunning(ctx, c, p.record(), ctr.ID, exits))
	}
	return errors.Join(errs...)
}

// handOverMissed hands what a keeper has missed to the present one.
func (p *pod) handOverMissed(hand func(*client.Client, map[string]client.Exit) error) error {
	exits := p.m.recordedExits()
	return p.m.Keeper.insist(p.m.ctx, func(c *client.Client) error { return hand(c, exits) })
}

// handOverRunning hands over a container, if the record calls it running.
func (p *pod) handOverRunning(ctx context.Context, c *client.Client, r *Record, id string, exits map[string]client.Exit) error {
	ctr, pr := r.Container(id), p.process(id)
	if ctr == nil || ctr.State() != runtimeapi.ContainerState_CONTAINER_RUNNING || pr == nil || pr.pidfd == nil {
		return nil
	}
	if e, ok := exits[id]; ok {
		p.m.wg.Go(func() { p.containerExited(id, e) })
		return nil
	}
	if err := p.handOverContainer(ctx, c, r, ctr, pr); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

func (p *pod) handOverSandbox(ctx context.Context, c *client.Client, r *Record, exits map[string]client.Exit) error {
	p.mu.Lock()
	namespaces, pause := maps.Clone(p.namespaces), p.pause
	p.mu.Unlock()
	if len(namespaces) == 0 {
		return nil
	}

	a := client.Adoption{ID: r.ID, Kind: client.Sandbox}
	a.Namespaces, a.StartedAt = namespaces, time.Unix(0, r.CreatedAt)
	if e, ok := exits[r.ID]; ok {
		p.m.wg.Go(func() { p.m.pauseExited(e) })
	} else if r.Pause != nil && pause != nil {
		a.Pid, a.PidFD = r.Pause.Pid, pause
		if _, err := p.m.orphans.Watch(a.Pid, pause); err != nil {
			return err
		}
	}

	_, err := adopt(ctx, c, a)
	return err
}

func (p *pod) handOverContainer(ctx context.Context, c *client.Client, r *Record, ctr *Container, pr *process) error {
	o, err := p.m.orphans.Watch(pr.pid, pr.pidfd)
	if err != nil {
		return err
	}

	p.mu.Lock()
	known := pr.orphan != nil
	pr.orphan = o
	a := client.Adoption{ID: ctr.ID, Kind: client.Container, Keep: keep(pr), Log: pr.log}
	p.mu.Unlock()
	a.Pid, a.PidFD, a.Terminal, a.StartedAt = pr.pid, pr.pidfd, pr.terminal, time.Unix(0, ctr.StartedAt)

	had, err := adopt(ctx, c, a)
	if had && !known {
		p.mu.Lock()
		pr.orphan = nil
		p.mu.Unlock()
		p.m.orphans.Release(o)
	}

	return err
}

// adopt hands something to a keeper, unless that has it, having only been
// upgraded: then the process is no orphan.
func adopt(ctx context.Context, c *client.Client, a client.Adoption) (had bool, err error) {
	err = c.Adopt(ctx, a)
	if errors.Is(err, client.ErrExists) {
		return true, nil
	}
	return false, err
}

// exitOfOrphan corrects the exit of a container whose keeper died.
func (p *pod) exitOfOrphan(pr *process, e client.Exit) client.Exit {
	p.mu.Lock()
	o := pr.orphan
	p.mu.Unlock()
	e, _ = exitOf(o, e)
	return e
}

// exitOf corrects the exit of a process whose keeper died, if it became the
// daemon's child then: the new keeper, not its parent, may not know it. It is
// not known if neither does. Without an orphan the keeper knows.
func exitOf(o *orphan.Orphan, e client.Exit) (_ client.Exit, known bool) {
	if o == nil {
		return e, true
	}
	select {
	case <-o.Done:
	case <-time.After(orphanTimeout):
		return e, false
	}

	switch {
	case !o.Known:
	case o.Status.Signaled():
		e.Signal, e.Code = int(o.Status.Signal()), 128+int(o.Status.Signal())
	default:
		e.Signal, e.Code = 0, o.Status.ExitStatus()
	}

	return e, o.Known
}

// reapSession reaps a command whose parent died and that was ended for it.
func (m *Manager) reapSession(s *client.Started) {
	o, err := m.orphans.Watch(s.Pid, s.PidFD)
	if err != nil {
		warn(err, "reap a command")
		return
	}
	select {
	case <-o.Done:
	case <-time.After(orphanTimeout):
	}
}

// findSessions hands to a keeper the commands under way that it does not have.
// They have noticed nothing: their streams are the daemon's. One that was only
// upgraded has them. It returns the exits that the keeper holds.
func (m *Manager) findSessions(c *client.Client) map[string]client.Exit {
	exits := map[string]client.Exit{}
	held := map[string]*client.Entry{}
	list, err := c.List(m.ctx)
	if err != nil { // it is gone, too: the next one is asked
		klog.ErrorS(err, "Ask the keeper what it holds")
		return exits
	}

	for i := range list {
		held[list[i].ID] = &list[i]
		if list[i].Exit != nil {
			exits[list[i].ID] = *list[i].Exit
		}
		list[i].Close()
	}

	for _, s := range m.strayed(held) {
		err := m.handOverSession(c, s)
		if err == nil || errors.Is(err, client.ErrLost) { // the next keeper gets it
			continue
		}

		klog.ErrorS(err, "Hand a command to the new keeper; it is ended", "session", s.id)
		m.mu.Lock()
		if m.sessions[s.id] == s {
			close(s.lost)
			delete(m.sessions, s.id)
		}
		m.mu.Unlock()
	}

	return exits
}

// strayed returns the sessions that are not held. Of those that are, some may
// have ended without anybody having been told.
func (m *Manager) strayed(held map[string]*client.Entry) (list []*session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range m.sessions {
		e := held[id]
		switch {
		case e == nil && s.started == nil:
			s.missed = true
		case e == nil:
			list = append(list, s)
		case e.Exit != nil:
			select {
			case s.exit <- *e.Exit:
			default:
			}
		}
	}

	return list
}

// handOverSession gives a command under way to a keeper that has not started it.
func (m *Manager) handOverSession(c *client.Client, s *session) error {
	m.mu.RLock()
	started := s.started
	m.mu.RUnlock()
	o, err := m.orphans.Watch(started.Pid, started.PidFD)
	if err != nil {
		return err
	}

	m.mu.Lock()
	s.orphan = o
	m.mu.Unlock()
	a := client.Adoption{ID: s.id, Kind: client.Exec}
	a.Pid, a.PidFD, a.StartedAt = started.Pid, started.PidFD, started.StartedAt
	_, err = adopt(m.ctx, c, a)
	return err
}
