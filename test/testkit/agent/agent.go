// Package agent is a seccomp agent for tests: it receives the listeners of filters as
// the OCI runtime-spec describes, and decides about the calls of containers.
package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit/pace"
)

// Call is a call that a process waits in.
type Call struct {
	Pid int
	Nr  int
}

// Answer is what an agent decides. Its zero value has the call return 0 without being
// made.
type Answer struct {
	// Value is what the call returns, unless Err is set.
	Value int64
	Err   unix.Errno
	// Continue has the kernel make the call.
	Continue bool
}

// Agent listens on a socket until its test ends.
type Agent struct {
	t testing.TB
	// States are the states that it was sent.
	States chan specs.ContainerProcessState

	mu        sync.Mutex
	listeners []int // guarded by mu
	calls     []Call
	answer    func(Call) Answer
}

// Start listens at path. A nil answer never answers.
func Start(t testing.TB, path string, answer func(Call) Answer) *Agent {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{t: t, States: make(chan specs.ContainerProcessState, 100), answer: answer}

	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			listener, err := a.receive(c)
			c.Close()
			if err != nil {
				t.Errorf("agent: %v", err)
				continue
			}
			wg.Go(func() { a.serve(listener) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		a.Leave()
		wg.Wait()
	})
	return a
}

// receive reads what is sent on a connection until its end.
func (a *Agent) receive(c *net.UnixConn) (listener int, err error) {
	if err := c.SetDeadline(time.Now().Add(pace.Scale(10 * time.Second))); err != nil {
		return 0, err
	}
	data, rights := make([]byte, 1<<20), make([]byte, 1<<10)
	n, rn, _, _, err := c.ReadMsgUnix(data, rights)
	if err != nil {
		return 0, fmt.Errorf("receive: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d control messages, %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	for more := 1; more > 0; n += more {
		if more, err = c.Read(data[n:]); err != nil {
			break // the end
		}
	}

	var state specs.ContainerProcessState
	if err := json.Unmarshal(data[:n], &state); err != nil {
		return 0, fmt.Errorf("%q: %w", data[:n], err)
	}
	if len(fds) != 1 || len(state.Fds) != 1 || state.Fds[0] != specs.SeccompFdName {
		return 0, fmt.Errorf("descriptors %v with the names %q", fds, state.Fds)
	}
	unix.CloseOnExec(fds[0])
	a.mu.Lock()
	a.listeners = append(a.listeners, fds[0])
	a.mu.Unlock()
	a.States <- state
	return fds[0], nil
}

// Sizes of struct seccomp_notif and struct seccomp_notif_resp.
const callSize, answerSize = 80, 24

// serve decides about calls until the filter has no process, or the agent leaves.
func (a *Agent) serve(listener int) {
	defer a.drop(listener)
	for {
		polled := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		_, err := unix.Poll(polled, 100)
		if a.gone(listener) || polled[0].Revents&(unix.POLLHUP|unix.POLLNVAL) != 0 {
			return
		}
		if err != nil || polled[0].Revents == 0 || a.answer == nil {
			time.Sleep(time.Millisecond)
			continue
		}

		in := make([]byte, callSize)
		if e := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, in); e != 0 {
			continue // the process has died meanwhile
		}
		call := Call{Pid: int(binary.NativeEndian.Uint32(in[8:])), Nr: int(binary.NativeEndian.Uint32(in[16:]))}
		a.mu.Lock()
		a.calls = append(a.calls, call)
		a.mu.Unlock()

		decided := a.answer(call)
		out := append(make([]byte, 0, answerSize), in[:8]...)
		out = binary.NativeEndian.AppendUint64(out, uint64(decided.Value))
		out = binary.NativeEndian.AppendUint32(out, uint32(-int32(decided.Err)))
		flags := uint32(0)
		if decided.Continue {
			flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		out = binary.NativeEndian.AppendUint32(out, flags)
		if e := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, out); e != 0 && !errors.Is(e, unix.ENOENT) {
			a.t.Errorf("agent: answer: %v", e)
		}
	}
}

func ioctl(fd int, request uintptr, p []byte) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, reflect.ValueOf(p).Pointer())
	runtime.KeepAlive(p)
	return e
}

// gone reports whether the agent has left a listener.
func (a *Agent) gone(listener int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, fd := range a.listeners {
		if fd == listener {
			return false
		}
	}
	return true
}

func (a *Agent) drop(listener int) { unix.Close(listener) }

// Leave has the agent give up all listeners, as if it had died.
func (a *Agent) Leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = nil
}

// Calls are those that it was asked about.
func (a *Agent) Calls() []Call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Call(nil), a.calls...)
}

// State is the next state that it is sent.
func (a *Agent) State() specs.ContainerProcessState {
	a.t.Helper()
	select {
	case s := <-a.States:
		return s
	case <-time.After(pace.Scale(10 * time.Second)):
		a.t.Fatal("the agent was sent no state")
		return specs.ContainerProcessState{}
	}
}
