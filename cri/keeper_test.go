package cri

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/runtime/wire"
)

// fakeKeeper speaks the keeper's protocol but runs no plan: it reports that
// each one ran, and a dummy process stands in for what the plan starts.
type fakeKeeper struct {
	listener int
	work     sync.WaitGroup

	mu     sync.Mutex
	conns  []*wire.Conn        // guarded by mu
	living map[string]*os.File // guarded by mu; pidfds of processes by id
}

// startKeeper starts a fake keeper and connects to it.
func startKeeper(t testing.TB) (*client.Link, *fakeKeeper) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "crisp-keeper")
	if err := os.WriteFile(program, []byte("#!/bin/false\n"), 0o700); err != nil {
		t.Fatal(err)
	}

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}

	// The path of a test's directory may be too long for an address.
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()

	addr := &unix.SockaddrUnix{Name: filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), "keeper-own.sock")}
	if err := errors.Join(unix.Bind(fd, addr), unix.Listen(fd, 4)); err != nil {
		t.Fatal(err)
	}

	k := &fakeKeeper{listener: fd, living: map[string]*os.File{}}
	k.work.Go(k.accept)
	keeper, err := client.OpenLink(t.Context(), dir, program)
	if err != nil {
		t.Fatal(err)
	}
	return keeper, k
}

// close stops the keeper and kills all processes.
func (k *fakeKeeper) close() {
	_ = unix.Shutdown(k.listener, unix.SHUT_RDWR) // wakes accept
	k.mu.Lock()
	for _, c := range k.conns {
		c.Close()
	}
	for _, f := range k.living {
		_ = unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0) // or it has exited
	}
	k.mu.Unlock()
	k.work.Wait()
	unix.Close(k.listener)
}

func (k *fakeKeeper) accept() {
	for {
		fd, _, err := unix.Accept4(k.listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}

		c, err := wire.NewConn(fd)
		if err != nil {
			return
		}

		k.mu.Lock()
		k.conns = append(k.conns, c)
		k.mu.Unlock()
		k.work.Go(func() { k.serve(c) })
	}
}

func (k *fakeKeeper) serve(c *wire.Conn) {
	defer c.Close()
	for {
		p, err := c.Recv()
		if err != nil {
			return
		}

		answer, files := k.answer(c, p)
		p.Files.Close()
		err = c.Send(p.Seq, answer, files)
		files.Close()
		if err != nil {
			return
		}
	}
}

func (k *fakeKeeper) answer(c *wire.Conn, p wire.Packet) (wire.Message, wire.Files) {
	switch m := p.Msg.(type) {
	case wire.Hello:
		return wire.Hello{Version: wire.Version}, nil
	case wire.Start:
		answer, files, err := k.start(c, m, p.Files)
		if err != nil {
			return wire.NewFail(err), nil
		}
		return answer, files
	case wire.Forget:
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.living[m.ID] != nil {
			return wire.NewFail(wire.ErrRunning), nil
		}
	}
	return wire.Done{}, nil
}

// start decodes a plan, so that one which the real keeper would refuse fails.
func (k *fakeKeeper) start(c *wire.Conn, m wire.Start, files wire.Files) (wire.Started, wire.Files, error) {
	answer := wire.Started{At: time.Now().UnixNano()}
	fd, err := unix.Dup(files.FD(wire.Plan))
	if err != nil {
		return answer, nil, err
	}

	f := os.NewFile(uintptr(fd), "plan")
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30)) // the offset is the sender's
	if err != nil {
		return answer, nil, err
	}

	p, err := plan.Decode(data)
	if err != nil {
		return answer, nil, err
	}

	var out wire.Files
	if m.Kind != wire.Sandbox || m.Pause {
		pidfd, pid, err := k.run(c, m)
		if err != nil {
			return answer, nil, err
		}
		answer.Pid = int64(pid)
		out.Add(wire.PidFD, pidfd)
	}
	if m.Terminal {
		tty, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return answer, nil, err
		}
		out.Add(wire.Terminal, tty)
	}
	if m.Hold {
		held, err := namespaces(p.Clone.Flags)
		if err != nil {
			return answer, nil, err
		}
		out = append(out, held...)
	}

	return answer, out, nil
}

// namespaces opens this process's in place of those that a plan creates.
func namespaces(flags uint64) (files wire.Files, err error) {
	for name, flag := range map[string]uint64{
		"user": unix.CLONE_NEWUSER, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC,
		"uts": unix.CLONE_NEWUTS, "mnt": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID,
	} {
		if flags&flag == 0 {
			continue
		}
		fd, err := unix.Open("/proc/self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		files.Add(wire.Namespace.Of(name), fd)
	}
	return files, nil
}

// run starts the process that stands in for a plan's: one that waits, or for a
// command in a container one that exits immediately.
func (k *fakeKeeper) run(c *wire.Conn, m wire.Start) (pidfd, pid int, err error) {
	cmd := exec.Command("sleep", "3600")
	if m.Kind == wire.Exec {
		cmd = exec.Command("true")
	}

	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return -1, 0, err
	}

	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}

	k.mu.Lock()
	k.living[m.ID] = os.NewFile(uintptr(own), "pidfd")
	k.mu.Unlock()
	k.work.Go(func() {
		_ = cmd.Wait() // its status is reported
		k.mu.Lock()
		k.living[m.ID].Close()
		delete(k.living, m.ID)
		k.mu.Unlock()

		exit := wire.Exited{ID: m.ID, Kind: m.Kind, Pid: int64(cmd.Process.Pid), At: time.Now().UnixNano()}
		if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			exit.Signal, exit.Code = int64(st.Signal()), 128+int64(st.Signal())
		}
		_ = c.Send(0, exit, nil) // the daemon may have exited
	})

	return fd, cmd.Process.Pid, nil
}
