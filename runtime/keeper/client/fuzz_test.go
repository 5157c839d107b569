package client

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/wire"
)

// The wire numbers of the packet types that a keeper sends, and others.
const fuzzTypes = 24

// FuzzKeeper has a keeper reply arbitrarily: each three bytes of script are a
// packet's type, sequence number and number of files, and a length of payload
// follows. No call may panic, hang, or leak a descriptor.
func FuzzKeeper(f *testing.F) {
	for typ := range byte(fuzzTypes) {
		f.Add([]byte{typ, 1, 0, 0, typ, 1, 3, 0})
		f.Add(append([]byte{typ, 1, 2, 40}, make([]byte, 40)...))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		before := openFiles(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}

		conn, err := wire.NewConn(pair[0])
		if err != nil {
			t.Fatal(err)
		}

		c := newClient(conn, nil)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			play(pair[1], script)
		}()

		ask(t, c)
		<-ended
		if err := c.Close(); err != nil {
			t.Error(err)
		}

		if after := openFiles(t); after > before {
			t.Errorf("%d descriptors are open, %d were", after, before)
		}
	})
}

// ask makes one call of each kind, at once: the script answers whichever it
// hits by its number.
func ask(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	for _, call := range []func() error{
		func() error {
			started, err := c.Start(ctx, Request{ID: "web", Kind: Exec, Plan: &plan.Plan{Name: "web"}})
			if err == nil {
				if started.Pid != 0 && started.PidFD == nil {
					t.Error("a process without its descriptor")
				}
				started.Close()
			}
			return err
		},
		func() error {
			list, err := c.List(ctx)
			for i := range list {
				list[i].Close()
			}
			return err
		},
		func() error { return c.Forget(ctx, "web") },
	} {
		if err := call(); errors.Is(err, context.DeadlineExceeded) {
			t.Error("a call outlived the connection")
		}
	}
}

// play sends a script's packets and disconnects.
func play(fd int, script []byte) {
	defer unix.Close(fd)
	for len(script) >= 4 {
		head, n := script[:4], min(int(script[3]), len(script)-4)
		packet := append([]byte{head[0] % fuzzTypes, head[1] % 4, 0, 0, 0}, script[4:4+n]...)
		script = script[4+n:]
		var oob []byte

		if files := int(head[2] % 5); files > 0 {
			oob = unix.UnixRights([]int{0, 1, 2, 0, 1}[:files]...)
		}
		if unix.Sendmsg(fd, packet, oob, nil, unix.MSG_NOSIGNAL) != nil {
			return
		}
	}

	// The calls are to get their replies before the end.
	time.Sleep(time.Millisecond)
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestInvalidReplies has a keeper announce files that it does not send, and
// reply with what was not requested.
func TestInvalidReplies(t *testing.T) {
	net := wire.Namespace.Of("net")
	for name, answer := range map[string]struct {
		m     wire.Message
		files wire.Files
	}{
		"gate":            {wire.Waiting{Pid: 1}, nil},
		"no pidfd":        {wire.Started{Pid: 1}, wire.Files{{Role: wire.Terminal, FD: 0}}},
		"no process":      {wire.Started{}, wire.Files{{Role: wire.PidFD, FD: 0}, {Role: wire.Terminal, FD: 1}}},
		"no terminal":     {wire.Started{}, nil},
		"two names":       {wire.Started{}, wire.Files{{Role: wire.Terminal, FD: 0}, {Role: net, FD: 0}, {Role: net, FD: 1}}},
		"not asked for":   {wire.Started{}, wire.Files{{Role: wire.Terminal, FD: 0}, {Role: wire.Log, FD: 1}}},
		"of no known use": {wire.Started{}, wire.Files{{Role: wire.Terminal, FD: 0}, {Role: "colour", FD: 1}}},
	} {
		before := openFiles(t)

		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}

		ours, err := wire.NewConn(pair[0])
		if err != nil {
			t.Fatal(err)
		}

		keeper, err := wire.NewConn(pair[1])
		if err != nil {
			t.Fatal(err)
		}

		c := newClient(ours, nil)
		answered := make(chan error, 1)
		go func() {
			p, err := keeper.Recv()
			p.Files.Close()
			answered <- errors.Join(err, keeper.Send(p.Seq, answer.m, answer.files))
		}()

		_, err = c.Start(testContext(t), Request{ID: "web", Kind: Exec, Plan: &plan.Plan{Name: "web"}, Terminal: true})
		if !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%s: error %v, want %v", name, err, wire.ErrProtocol)
		}
		if err := errors.Join(<-answered, keeper.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		if after := openFiles(t); after > before {
			t.Errorf("%s: %d descriptors are open, %d were", name, after, before)
		}
	}
}
