package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/sealed"
	"crisp/runtime/wire"
)

const (
	// stateEnv and checkEnv name the descriptor of the state that a program is
	// to continue from, or only to check.
	stateEnv = "CRISP_KEEPER_STATE"
	checkEnv = "CRISP_KEEPER_CHECK"
	// drainTime is how long an upgrade waits for starts under way and writes to
	// logs, checkTime how long for the new program's check of the state.
	drainTime, checkTime = 5 * time.Second, 5 * time.Second
)

// errBusy is an upgrade that was abandoned.
var errBusy = errors.New("the keeper is busy")

// upgrade executes another program in this process, which keeps its children
// and descriptors. It returns only if that failed or if the program is the one
// that runs.
//
// Everything is paused at a point where no state exists only in this process's
// memory: no start is under way, and the lock of each output is held, so that
// all bytes read are in the spool. Processes that exit meanwhile are reaped by
// the new program.
func (k *keeper) upgrade(s *session, m wire.Upgrade, files wire.Files) error {
	if err := m.Check(files); err != nil {
		files.Close()
		return fmt.Errorf("upgrade: %w: %w", wire.ErrInvalid, err)
	}

	program := os.NewFile(uintptr(files.Take(wire.Program)), "program")
	defer program.Close()
	if !sealed.Is(program) {
		return fmt.Errorf("upgrade: %w: the program is not sealed", wire.ErrInvalid)
	}

	if same, err := isSelf(program); same || err != nil {
		return err
	}
	if !k.upgrading.TryLock() {
		return fmt.Errorf("upgrade: %w", errBusy)
	}
	defer k.upgrading.Unlock()

	thaw, err := k.freeze(s)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer thaw()

	if err := k.become(program); err != nil {
		k.logf("upgrade: %v", err)
		return fmt.Errorf("upgrade: %w", err)
	}
	return nil
}

// isSelf reports whether a program is the one that runs.
func isSelf(program *os.File) (bool, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return false, fmt.Errorf("open own program: %w", err)
	}
	defer self.Close()

	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); ; off += int64(len(a)) {
		n, aerr := self.ReadAt(a, off)
		m, berr := program.ReadAt(b, off)
		switch {
		case !bytes.Equal(a[:n], b[:m]):
			return false, nil
		case aerr == io.EOF && berr == io.EOF:
			return true, nil
		case aerr != nil || berr != nil:
			return false, fmt.Errorf("compare programs: %w", errors.Join(aerr, berr))
		}
	}
}

// freeze pauses everything, or nothing if that takes too long. The returned
// function resumes it.
func (k *keeper) freeze(s *session) (thaw func(), err error) {
	end := time.Now().Add(drainTime)
	// Daemons reconnect and repeat requests that were not read yet.
	k.mu.Lock()
	for other := range k.sessions {
		if other != s {
			other.conn.Close()
		}
	}
	k.mu.Unlock()

	k.eventMu.Lock()
	for {
		k.mu.Lock()
		held, quiet := k.quietLocked()
		if quiet {
			return func() { unlock(held); k.mu.Unlock(); k.eventMu.Unlock() }, nil
		}

		unlock(held)
		k.mu.Unlock()
		if time.Now().After(end) {
			k.eventMu.Unlock()
			return nil, errBusy
		}
		time.Sleep(time.Millisecond)
	}
}

// quietLocked takes the locks of all outputs and logs, if no start is under way
// and no output is in the middle of a write.
func (k *keeper) quietLocked() (held []sync.Locker, ok bool) {
	if k.forking > 0 || !k.storeMu.TryLock() {
		return nil, false
	}
	held = append(held, &k.storeMu)
	for _, e := range k.entries {
		if !e.started {
			return held, false
		}
		for _, o := range e.outputs {
			if !o.mu.TryLock() {
				return held, false
			}
			held = append(held, &o.mu)
		}

		if e.log != nil {
			if !e.log.TryLock() {
				return held, false
			}
			held = append(held, e.log)
		}
	}

	return held, true
}

func unlock(list []sync.Locker) {
	for _, mu := range list {
		mu.Unlock()
	}
}

// become executes the program while everything is frozen. An error leaves all as it was.
func (k *keeper) become(program *os.File) (err error) {
	s := &saved{oomScoreAdj: k.opt.OOMScoreAdj}
	inherited := []int{listenFD}
	for _, e := range k.entries {
		saved := e.saveLocked()
		s.entries = append(s.entries, saved)
		inherited = append(inherited, saved.files.Numbers()...)
	}

	state, err := stateFile(s.encode())
	if err != nil {
		return err
	}
	defer state.Close()

	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd())
	if err := check(path, state); err != nil {
		return err
	}

	fd, err := wire.Number(state)
	if err != nil {
		return err
	}

	inherited = append(inherited, fd)
	defer func() {
		for _, fd := range inherited {
			unix.CloseOnExec(fd)
		}
	}()

	for _, fd := range inherited {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("pass on descriptor %d: %w", fd, err)
		}
	}

	dir, err := filepath.Abs(k.stateDir)
	if err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, stateEnv+"=") })
	err = unix.Exec(path, []string{programName, dir}, append(env, stateEnv+"="+strconv.Itoa(fd)))
	return fmt.Errorf("execute program: %w", err)
}

func stateFile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make state: %w", err)
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("write state: %w", err)
	}
	return f, nil
}

// check has the new program read the state, in a process of its own. The reaper
// cannot steal its exit: it waits for the lock.
func check(path string, state *os.File) error {
	const number = 3
	p, err := os.StartProcess(path, []string{programName}, &os.ProcAttr{
		Env: []string{checkEnv + "=" + strconv.Itoa(number)}, Files: []*os.File{nil, nil, os.Stderr, state},
	})
	if err != nil {
		return fmt.Errorf("check program: %w", err)
	}

	late := time.AfterFunc(checkTime, func() { _ = p.Kill() }) // it may have ended
	defer late.Stop()
	end, err := p.Wait()
	if err != nil {
		return fmt.Errorf("check program: %w", err)
	}

	if !end.Success() {
		return fmt.Errorf("check program: it cannot read the state: %v", end)
	}
	return nil
}

// inherit returns the state that another program has left to this one, nil if
// this is the first. done is true if only a check was requested.
func inherit() (s *saved, done bool, err error) {
	for _, name := range []string{checkEnv, stateEnv} {
		text := os.Getenv(name)
		if text == "" {
			continue
		}
		fd, err := strconv.Atoi(text)
		if err != nil || fd < listenFD {
			return nil, true, fmt.Errorf("%s=%q is not a descriptor", name, text)
		}
		s, err := readState(fd)
		return s, name == checkEnv, err
	}
	return nil, false, nil
}
