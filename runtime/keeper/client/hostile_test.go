package client

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/wire"
	"crisp/test/testkit"
)

// rawDial connects to a keeper without a handshake.
func rawDial(t *testing.T, dir string) int {
	t.Helper()
	fd, err := socket()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, ownSocketName)}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func rawConn(t *testing.T, dir string) *wire.Conn {
	t.Helper()
	conn, err := wire.NewConn(rawDial(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestOtherVersion(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	defer connectTest(t, dir).Close()
	conn := rawConn(t, dir)
	if err := conn.Send(0, wire.Hello{Version: wire.Version + 1}, nil); err != nil {
		t.Fatal(err)
	}

	p, err := conn.Recv()
	if f, ok := p.Msg.(wire.Fail); err != nil || !ok || !errors.Is(f, wire.ErrVersion) {
		t.Errorf("answer %+v, error %v", p.Msg, err)
	}
	if _, err := conn.Recv(); err != io.EOF {
		t.Errorf("after the answer: error %v", err)
	}
}

// TestNonsense sends garbage to a keeper, with descriptors. It must disconnect
// that peer, serve others, and keep no descriptor of it.
func TestNonsense(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()
	t.Cleanup(func() { os.Remove(filepath.Join(dir, logName)) }) // it complains there

	before := keeperFDs(t, c)
	hello := []byte{1, 0, 0, 0, 0, wire.Version}
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 300 {
		fd := rawDial(t, dir)
		if round%3 > 0 {
			if err := unix.Sendto(fd, hello, 0, nil); err != nil {
				t.Fatal(err)
			}
		}

		for range 1 + rnd.IntN(4) {
			msg := make([]byte, rnd.IntN(40))
			for i := range msg {
				msg[i] = byte(rnd.IntN(256))
			}

			if len(msg) > 0 {
				msg[0] = byte(rnd.IntN(18))
			}

			// The keeper may have disconnected already.
			_ = unix.Sendmsg(fd, msg, unix.UnixRights(0, 1, 2), nil, unix.MSG_NOSIGNAL)
		}
		unix.Close(fd)
	}

	if list := listAll(t, c); len(list) != 0 {
		t.Errorf("listed %v", list)
	}
	newShell(t, "web", "exit 3").start(t, c)

	if x := awaitExit(t, c, "web"); x.Code != 3 {
		t.Errorf("exit %+v", x)
	}
	forget(t, c, "web")
	eventually(t, "descriptors are closed", func() bool { return keeperFDs(t, c) <= before })
}

func keeperFDs(t *testing.T, c *Client) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.keeper.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestBadStarts sends starts that the client would not send.
func TestBadStarts(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	conn := rawConn(t, dir)
	if err := hello(conn); err != nil {
		t.Fatal(err)
	}

	p := newProgram("start")
	p.exec("/bin/true")
	good, err := sealedFile("plan", p.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(good)

	junk, err := sealedFile("plan", []byte("crisp plan 2\njunk"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(junk)

	p.input("program")
	wanting, err := sealedFile("plan", p.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(wanting)

	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer wire.CloseAll(fds[:])

	start := wire.Start{ID: "web", Kind: wire.Exec}
	with := func(change func(*wire.Start)) wire.Start {
		m := start
		change(&m)
		return m
	}

	plan := wire.Files{{Role: wire.Plan, FD: good}}
	and := func(roles ...wire.Role) (files wire.Files) {
		files = plan[:1:1]
		for _, r := range roles {
			files.Add(r, fds[0])
		}
		return files
	}
	stdout := wire.Streams()[0]

	before := keeperFDs(t, c)
	for name, r := range map[string]struct {
		m     wire.Start
		files wire.Files
	}{
		"no plan":             {start, nil},
		"plan is a pipe":      {start, wire.Files{{Role: wire.Plan, FD: fds[0]}}},
		"plan is junk":        {start, wire.Files{{Role: wire.Plan, FD: junk}}},
		"two plans":           {start, and(wire.Plan)},
		"a file of no use":    {start, and("colour")},
		"a file not expected": {start, and(wire.PidFD)},
		"inputs unexpected":   {start, and(wire.Input)},
		"inputs missing":      {start, wire.Files{{Role: wire.Plan, FD: wanting}}},
		"keep without a name": {start, and(wire.Kept)},
		"kept twice":          {start, and(wire.Kept.Of("stdin"), wire.Kept.Of("stdin"))},
		"stdout unlogged":     {start, and(stdout.Pipe, stdout.Spool)},
		"stdout unspooled":    {start, and(stdout.Pipe, wire.Log)},
		"former log":          {start, and(wire.Former, wire.Log)},
		"a held one's log":    {with(func(m *wire.Start) { m.Hold = true }), and(wire.Log)},
		"pause without hold":  {with(func(m *wire.Start) { m.Pause = true }), plan},
		"terminal's stderr":   {with(func(m *wire.Start) { m.Terminal = true }), and(wire.Streams()[1].Pipe)},
		"id is a path":        {with(func(m *wire.Start) { m.ID = "../web" }), plan},
		"no kind":             {with(func(m *wire.Start) { m.Kind = 0 }), plan},
	} {
		if err := conn.Send(5, r.m, r.files); err != nil {
			t.Fatal(err)
		}
		answer, err := conn.Recv()
		if err != nil {
			t.Fatal(err)
		}

		if f, ok := answer.Msg.(wire.Fail); !ok {
			t.Errorf("%s: answer %+v", name, answer.Msg)
		} else if !strings.HasPrefix(name, "inputs ") && !errors.Is(f, wire.ErrInvalid) {
			t.Errorf("%s: error %v", name, f)
		}
	}

	if list := listAll(t, c); len(list) != 0 {
		t.Errorf("left %+v", list)
	}
	eventually(t, "descriptors are closed", func() bool { return keeperFDs(t, c) <= before })
}

// TestDaemonDiesAtGate disconnects the daemon while a child waits at its gate.
func TestDaemonDiesAtGate(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	marker := filepath.Join(t.TempDir(), "passed")
	for _, forked := range []bool{false, true} {
		other := connectTest(t, dir)
		p := newProgram("start container web")
		if forked {
			p.fork()
		}

		p.gate()
		p.exec("/bin/touch", marker)
		reached := make(chan struct{})
		result := make(chan error)
		go func() {
			_, err := other.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan, Gate: func(int) error {
				close(reached)
				<-other.Done()
				return nil
			}})
			result <- err
		}()

		<-reached
		other.Close()
		if err := <-result; !errors.Is(err, ErrLost) {
			t.Errorf("error %v, want %v", err, ErrLost)
		}

		eventually(t, "start is gone", func() bool { return c.Forget(testContext(t), "web") == nil })
		awaitChildless(t, c)
		if _, err := os.Stat(marker); err == nil {
			t.Error("child passed the gate")
		}
	}
}

// TestKeeperDiesDuringStart kills the keeper while a child runs its plan: the
// child must not execute its program.
func TestKeeperDiesDuringStart(t *testing.T) {
	testkit.Root(t)
	for _, forked := range []bool{false, true} {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}

		c := connectTest(t, dir)
		fifo, marker := filepath.Join(dir, "fifo"), filepath.Join(dir, "passed")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}

		p := newProgram("start container web")
		if forked {
			p.fork()
		}

		p.do("hang", unix.SYS_OPENAT, num(unix.AT_FDCWD), str(fifo), num(unix.O_RDONLY), num(0)).Save = 0
		p.do("hold", unix.SYS_READ, plan.Arg{Kind: plan.ArgReg, Int: 0}, plan.Arg{Kind: plan.ArgBytes, Bytes: []byte{0}}, num(1))
		p.exec("/bin/touch", marker)
		result := make(chan error)
		go func() {
			_, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan})
			result <- err
		}()

		w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // returns when the child is there
		if err != nil {
			t.Fatal(err)
		}

		if err := c.keeper.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, ErrLost) {
			t.Errorf("error %v, want %v", err, ErrLost)
		}
		w.Close() // lets the child continue
		c.Close()
		time.Sleep(50 * time.Millisecond)

		if _, err := os.Stat(marker); err == nil {
			t.Error("child outlived the keeper")
		}
	}
}
