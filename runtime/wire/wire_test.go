package wire

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/spawn"
	"crisp/runtime/wire/pack"
)

func messages() []Message {
	exit := Exited{ID: "web", Kind: Container, Pid: 77, Code: 137, Signal: 9, At: math.MaxInt64, OOMKills: 2}
	started := Started{Pid: 5, At: -1}
	return []Message{
		Hello{Version: Version},
		Start{ID: "web", Kind: Sandbox, Terminal: true, Hold: true, Pause: true, Gate: true, MaxLine: -1},
		Adopt{ID: "web", Kind: Container, Started: started, MaxLine: 9},
		Replace{ID: "web", Pid: 17, MaxLine: 9},
		Proceed{OK: true}, Proceed{}, Cancel{}, List{},
		Reopen{ID: "web"}, Attach{ID: "web"}, CloseKept{ID: "web", Name: "stdin"}, Forget{ID: "web"},
		Done{}, Waiting{Pid: 1},
		Fail{Code: 3, Text: "oops"},
		Fail{Text: "no", Step: &spawn.StepError{Plan: "p", Index: -1, Step: "clone", Err: unix.EAGAIN}},
		started,
		Entry{ID: "web", Kind: Exec, Started: started, Dropped: 9, Exit: &exit},
		Entry{ID: "pod", Kind: Sandbox}, exit,
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, m := range messages() {
		var w pack.Writer
		m.put(&w)
		got, _, err := decode(m.kind(), w.Bytes(), 0)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: got %+v, want %+v, error %v", m, got, m, err)
		}

		for n := range w.Bytes() {
			if _, _, err := decode(m.kind(), w.Bytes()[:n], 0); !errors.Is(err, ErrProtocol) {
				t.Errorf("%T cut to %d bytes: error %v", m, n, err)
			}
		}

		if _, _, err := decode(m.kind(), append(w.Bytes(), 0), 0); !errors.Is(err, ErrProtocol) {
			t.Errorf("%T with a byte too many: error %v", m, err)
		}
	}
	if _, _, err := decode(99, nil, 0); !errors.Is(err, ErrProtocol) {
		t.Errorf("unknown type: error %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		var w pack.Writer
		m.put(&w)
		f.Add(m.kind(), w.Bytes(), uint16(0))
		Files{{Log, 3}, {Former, 4}, {Former, 5}, {Kept.Of("stdin"), 6}}.PutRoles(&w)
		f.Add(m.kind(), w.Bytes(), uint16(4))
	}
	f.Fuzz(func(t *testing.T, typ byte, payload []byte, n uint16) {
		m, files, err := decode(typ, payload, int(n))
		if err != nil {
			return
		}
		if len(files) != int(n) {
			t.Fatalf("%d files are %v", n, files)
		}

		var w pack.Writer
		m.put(&w)
		if n > 0 && typ != typeUpgrade {
			files.PutRoles(&w)
		}
		again, same, err := decode(m.kind(), w.Bytes(), int(n))
		if err != nil || !reflect.DeepEqual(again, m) || !reflect.DeepEqual(same, files) {
			t.Fatalf("got %+v with %v, want %+v with %v, error %v", again, same, m, files, err)
		}
	})
}

func TestErrorsSurvive(t *testing.T) {
	for _, sentinel := range codes() {
		err := error(NewFail(fmt.Errorf("start web: %w", sentinel)))
		if !errors.Is(err, sentinel) || err.Error() != "start web: "+sentinel.Error() {
			t.Errorf("%v became %v", sentinel, err)
		}
	}

	step := &spawn.StepError{Plan: "start web", Index: 3, Step: "mount /proc", Err: unix.EPERM}
	err := error(NewFail(step))
	var got *spawn.StepError
	if !errors.As(err, &got) || *got != *step || !errors.Is(err, unix.EPERM) || err.Error() != step.Error() {
		t.Errorf("step became %v", err)
	}

	if err := NewFail(io.ErrUnexpectedEOF); errors.Unwrap(err) != nil {
		t.Errorf("unknown error became %v", errors.Unwrap(err))
	}
	if f := NewFail(errors.New(strings.Repeat("x", 1<<20))); len(f.Text) > maxText+10 {
		t.Errorf("text of %d bytes", len(f.Text))
	}
}

func connPair(t *testing.T) (a, b *Conn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []**Conn{&a, &b} {
		if *c, err = NewConn(pair[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*c).Close() })
	}
	return a, b
}

func TestFilesTravel(t *testing.T) {
	a, b := connPair(t)
	for _, n := range []int{0, 1, maxRights, maxRights + 1, 3*maxRights + 5} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}

		var files Files
		for i := range n {
			files.Add([]Role{Log, Former}[i%2], int(r.Fd()))
		}

		sent := make(chan error, 1)
		go func() { sent <- a.Send(7, Forget{ID: "web"}, files) }()
		p, err := b.Recv()
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}

		if p.Seq != 7 || p.Msg != (Forget{ID: "web"}) || len(p.Files) != n {
			t.Errorf("%d files: got %d, sequence %d, %+v", n, len(p.Files), p.Seq, p.Msg)
		}
		for i, f := range p.Files {
			flags, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 || f.FD <= 2 || f.Role != files[i].Role {
				t.Fatalf("descriptor %v: flags %d, error %v", f, flags, err)
			}
		}

		p.Files.Close()
		r.Close()
		w.Close()
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestInvalidPacketsLeakNothing sends invalid packets with descriptors.
func TestInvalidPacketsLeakNothing(t *testing.T) {
	for name, send := range map[string]func(fd int, rights []byte) error{
		"empty":        func(fd int, r []byte) error { return unix.Sendmsg(fd, nil, r, nil, 0) },
		"short":        func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{1, 2}, r, nil, 0) },
		"unknown type": func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{99, 0, 0, 0, 0}, r, nil, 0) },
		"bad payload":  func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{typeForget, 0, 0, 0, 0, 9}, r, nil, 0) },
		"too long":     func(fd int, r []byte) error { return unix.Sendmsg(fd, make([]byte, maxPacket+1), r, nil, 0) },
		"no roles":     func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{typeList, 0, 0, 0, 0}, r, nil, 0) },
		"a role for two": func(fd int, r []byte) error {
			return unix.Sendmsg(fd, []byte("\x05\x00\x00\x00\x00\x01\x01x\x01"), r, nil, 0)
		},
		"three for two": func(fd int, r []byte) error {
			return unix.Sendmsg(fd, []byte("\x05\x00\x00\x00\x00\x01\x01x\x03"), r, nil, 0)
		},
		"2^64 - 1 roles": func(fd int, r []byte) error {
			return unix.Sendmsg(fd, []byte("\x05\x00\x00\x00\x00\x01\x01x\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), r, nil, 0)
		},
		"files without their message": func(fd int, r []byte) error {
			if err := unix.Sendmsg(fd, []byte{typeMore, 1, 0, 0, 0}, r, nil, 0); err != nil {
				return err
			}
			return unix.Sendmsg(fd, []byte{typeList, 2, 0, 0, 0}, r, nil, 0)
		},
		"files without end": func(fd int, r []byte) error {
			for range maxFiles/2 + 1 {
				if err := unix.Sendmsg(fd, []byte{typeMore, 1, 0, 0, 0}, r, nil, 0); err != nil {
					return nil // the receiver has disconnected
				}
			}
			return nil
		},
	} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}

		c, err := NewConn(pair[0])
		if err != nil {
			t.Fatal(err)
		}

		before := openFDs(t)
		sent := make(chan error, 1)
		go func() { sent <- send(pair[1], unix.UnixRights(0, 0)) }()
		if p, err := c.Recv(); !errors.Is(err, ErrProtocol) && !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %+v, error %v", name, p, err)
		}

		if now := openFDs(t); now > before {
			t.Errorf("%s: %d descriptors more", name, now-before)
		}
		c.Close()

		if err := <-sent; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(pair[1])
	}
}

// TestHandshakeNeverChanges compares the handshake between versions with that
// of version 3.
func TestHandshakeNeverChanges(t *testing.T) {
	for _, test := range []struct {
		m      Message
		packet string
	}{
		{Hello{Version: 3}, "\x01\x03"},
		{Done{}, "\x0a"},
		{NewFail(fmt.Errorf("%w: daemon has 4, keeper has 3", ErrVersion)), "\x0b\x01:protocol version not supported: daemon has 4, keeper has 3\x00"},
	} {
		var w pack.Writer
		test.m.put(&w)
		if got := string([]byte{test.m.kind()}) + string(w.Bytes()); got != test.packet {
			t.Errorf("%T is %q, want %q", test.m, got, test.packet)
		}
	}
}

// TestUpgradeHasNoRole upgrades from and to a version without roles.
func TestUpgradeHasNoRole(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])

	c, err := NewConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	if err := c.Send(0, Upgrade{}, Files{{Program, 0}}); err != nil {
		t.Fatal(err)
	}
	packet, oob := make([]byte, 64), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(pair[1], packet, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || string(packet[:n]) != "\x11\x00\x00\x00\x00" {
		t.Fatalf("sent %q, error %v", packet[:n], err)
	}
	fds, _, err := control(oob[:oobn])
	if err != nil || len(fds) != 1 {
		t.Fatalf("sent files %v, error %v", fds, err)
	}
	defer CloseAll(fds)

	if err := unix.Sendmsg(pair[1], packet[:n], unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
	p, err := c.Recv()
	if m, ok := p.Msg.(Upgrade); err != nil || !ok || m.Check(p.Files) != nil {
		t.Errorf("received %+v, error %v", p, err)
	}
	p.Files.Close()
}

// TestIdentify has packets come with their sender, and with descriptors, while that is
// asked for.
func TestIdentify(t *testing.T) {
	a, b := connPair(t)
	for _, on := range []bool{false, true, false} {
		b.peer = 0
		if err := b.Identify(on); err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Send(1, Upgrade{}, Files{{Program, int(r.Fd())}}); err != nil {
			t.Fatal(err)
		}

		p, err := b.Recv()
		if err != nil || len(p.Files) != 1 {
			t.Fatalf("received %+v, error %v", p, err)
		}
		p.Files.Close()
		if got := b.Peer(); got == os.Getpid() != on {
			t.Errorf("identify %t: the peer is %d, this is %d", on, got, os.Getpid())
		}
		r.Close()
		w.Close()
	}
}

func TestEnds(t *testing.T) {
	a, b := connPair(t)
	a.Close()
	if _, err := b.Recv(); err != io.EOF {
		t.Errorf("receive: error %v, want EOF", err)
	}

	if err := b.Send(1, List{}, nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("send: error %v", err)
	}
	received := make(chan error)
	c, _ := connPair(t)
	go func() { _, err := c.Recv(); received <- err }()
	c.Close()

	if err := <-received; !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive on a closed connection: error %v", err)
	}
}

func TestTooLargeToSend(t *testing.T) {
	a, _ := connPair(t)
	if err := a.Send(1, Forget{ID: strings.Repeat("x", maxPacket)}, nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("error %v", err)
	}
}

func TestCheckPeer(t *testing.T) {
	a, _ := connPair(t)
	if err := a.CheckPeer(); err != nil {
		t.Error(err)
	}
}

func TestExitRecord(t *testing.T) {
	want := Exited{ID: "web-1.x", Kind: Container, Pid: 77, Code: 137, Signal: 9, At: 1234567890123456789, OOMKills: 3}
	got, err := ParseRecord(want.Record())
	if err != nil || got != want {
		t.Errorf("got %+v, want %+v, error %v", got, want, err)
	}

	old := "crisp exit 1\nid web-1.x\nkind 2\npid 77\ncode 137\nsignal 9\nat 1234567890123456789\n"
	want.OOMKills, want.Kind = 0, 2
	if got, err := ParseRecord([]byte(old)); err != nil || got != want {
		t.Errorf("of version 1: got %+v, want %+v, error %v", got, want, err)
	}

	for _, bad := range []string{"", "crisp exit 1\n", "crisp exit 2\n", string(want.Record()[:40])} {
		if _, err := ParseRecord([]byte(bad)); !errors.Is(err, ErrRecord) {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"web": true, "4f2A_b-c.d": true, "": false, ".": false, "..": false, ".x": false, "a/b": false,
		"a b": false, "a\nb": false, "ü": false, strings.Repeat("x", 201): false,
	} {
		if ValidID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}
