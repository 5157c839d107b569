package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/crilog"
	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

const (
	socketName = "keeper-own.sock" // of a keeper started by a daemon
	lockName   = "keeper.lock"
	exitsDir   = "exits"
	// idleTime is how long a keeper without entries and sessions stays.
	idleTime = time.Second
)

// keeper is the state of the process.
type keeper struct {
	stateDir string
	// activated: systemd owns the socket and starts another keeper when a
	// daemon connects after this one has exited.
	activated bool
	opt       spawn.Options
	decoders  sync.Pool // of *plan.Decoder
	logBuf    crilog.Buffers
	poke      chan struct{} // has a token when the keeper may have become idle
	sweep     chan struct{} // has a token when there may be zombies to reap
	exits     int           // an epoll descriptor, of the pidfds of procs; -1 without one
	leave     chan struct{} // closed when the keeper exits
	wg        sync.WaitGroup

	mu       sync.Mutex
	entries  map[string]*entry // guarded by mu
	limit    int64             // guarded by mu; of memory, for as many entries
	procs    map[int]*proc     // guarded by mu; children not reaped yet
	forking  int               // guarded by mu; plans whose fork is not reported yet
	sessions map[*session]bool // guarded by mu; those past the handshake
	conns    map[*session]bool // guarded by mu; all with requests under way

	eventMu sync.Mutex // orders the exits that are sent

	upgrading sync.Mutex // held during an upgrade

	store   *store     // nil unless the service manager has one
	storeMu sync.Mutex // orders changes to the store; no other lock is held when it is taken
}

func newKeeper(stateDir string, opt spawn.Options) *keeper {
	k := &keeper{
		stateDir: stateDir, opt: opt, exits: -1,
		poke: make(chan struct{}, 1), sweep: make(chan struct{}, 1), leave: make(chan struct{}),
		entries: make(map[string]*entry), procs: make(map[int]*proc),
		sessions: make(map[*session]bool), conns: make(map[*session]bool),
	}
	return k
}

// logf logs to the keeper's stderr what cannot be reported to a peer.
func (k *keeper) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().UTC().Format(time.RFC3339Nano)}, args...)...)
}

// serve runs until the keeper is idle.
func (k *keeper) serve(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("use listening socket: %w", err)
	}
	listener := os.NewFile(uintptr(fd), socketName)
	child, term := notifySignals()
	k.wg.Go(func() { k.reapLoop(child) })
	k.wg.Go(func() { k.accept(listener) })

	idle := time.NewTimer(idleTime)
	asked := false
	for {
		select {
		case <-k.poke:
			idle.Reset(idleTime)
		case <-term:
			asked = true
		case <-idle.C:
			if ended, err := k.exitIf(listener, k.idle); ended || err != nil {
				return err
			}
		}
		// After SIGTERM the keeper exits once no process is left and the exit
		// records are written.
		if asked {
			if ended, err := k.exitIf(listener, k.drained); ended || err != nil {
				return err
			}
		}
	}
}

// checkIdle has the serve loop check whether the keeper is idle now.
func (k *keeper) checkIdle() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

func (k *keeper) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.entries) == 0 && len(k.sessions) == 0 && len(k.procs) == 0
}

// drained reports whether every process has exited and is recorded.
func (k *keeper) drained() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		if e.busyLocked() {
			return false
		}
	}
	return len(k.procs) == 0
}

// exitIf shuts the keeper down if may allows it. It removes the socket, so that
// the next daemon starts a new keeper. A daemon that connected in the meantime
// is disconnected and tries again.
func (k *keeper) exitIf(listener *os.File, may func() bool) (ended bool, err error) {
	if !may() {
		return false, nil
	}
	if k.activated {
		k.shutdown(listener)
		return true, nil
	}

	lock, err := os.OpenFile(filepath.Join(k.stateDir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, fmt.Errorf("open lock: %w", err)
	}
	defer lock.Close()

	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("take lock: %w", err)
	}
	if !may() { // a daemon connected while it had the lock
		return false, nil
	}

	if err := os.Remove(filepath.Join(k.stateDir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("remove socket: %w", err)
	}
	k.shutdown(listener)
	return true, nil
}

// shutdown ends all goroutines. Daemons are disconnected, also before their
// handshake: one still served would hold the lock, and what it starts would
// never be reaped.
func (k *keeper) shutdown(listener *os.File) {
	listener.Close()
	close(k.leave)
	k.mu.Lock()
	for s := range k.conns {
		s.conn.Close()
	}

	for id, e := range k.entries {
		delete(k.entries, id)
		if e.started {
			e.release()
		}
	}
	k.mu.Unlock()
	k.wg.Wait()
	if k.exits >= 0 {
		unix.Close(k.exits)
	}
}

func (k *keeper) accept(listener *os.File) {
	raw, err := listener.SyscallConn()
	if err != nil {
		k.logf("use listening socket: %v", err)
		return
	}

	for {
		fd := -1
		var aerr error
		err := raw.Read(func(lfd uintptr) bool {
			fd, _, aerr = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC)
			return aerr != unix.EAGAIN
		})

		switch {
		case err != nil:
			return
		case aerr == unix.EMFILE || aerr == unix.ENFILE || aerr == unix.ENOMEM || aerr == unix.ENOBUFS:
			time.Sleep(100 * time.Millisecond)
		case aerr == nil:
			k.welcome(fd)
		}
	}
}

func (k *keeper) welcome(fd int) {
	conn, err := wire.NewConn(fd)
	if err != nil {
		k.logf("accept connection: %v", err)
		return
	}

	if err := conn.CheckPeer(); err != nil {
		k.logf("accept connection: %v", err)
		conn.Close()
		return
	}

	s := &session{k: k, conn: conn, starts: make(map[uint32]*start), ended: make(chan struct{}), over: make(chan struct{})}
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.leave:
		conn.Close()
	default:
		k.conns[s] = true
		k.wg.Go(s.serve)
	}
}
