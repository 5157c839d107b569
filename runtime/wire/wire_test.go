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
	started := Started{Pid: 5, At: -1, Terminal: true, Namespaces: []string{"net", "ipc"}}
	return []Message{
		Hello{Version: Version},
		Start{
			ID: "web", Kind: Sandbox, Inputs: 3, Terminal: true, Hold: true, Pause: true, Gate: true,
			Log: true, Stdout: true, Stderr: true, MaxLine: -1, Keep: []string{"stdin", "x"},
		},
		Adopt{ID: "web", Kind: Container, Started: started, Log: true, Stdout: true, Stderr: true, MaxLine: 9, Keep: []string{"stdin"}},
		Proceed{OK: true}, Proceed{}, Cancel{}, List{},
		Reopen{ID: "web"}, Attach{ID: "web", Stdout: true}, CloseKept{ID: "web", Name: "stdin"}, Forget{ID: "web"},
		Done{}, Waiting{Pid: 1},
		Fail{Code: 3, Text: "oops"},
		Fail{Text: "no", Step: &spawn.StepError{Plan: "p", Index: -1, Step: "clone", Err: unix.EAGAIN}},
		started,
		Entry{ID: "web", Kind: Exec, Started: started, Keep: []string{"stdin"}, Dropped: 9, Exit: &exit},
		Entry{ID: "pod", Kind: Sandbox}, exit,
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, m := range messages() {
		var w pack.Writer
		m.put(&w)
		got, err := decode(m.kind(), w.Bytes())
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: got %+v, want %+v, error %v", m, got, m, err)
		}

		for n := range w.Bytes() {
			if _, err := decode(m.kind(), w.Bytes()[:n]); !errors.Is(err, ErrProtocol) {
				t.Errorf("%T cut to %d bytes: error %v", m, n, err)
			}
		}

		if _, err := decode(m.kind(), append(w.Bytes(), 0)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%T with a byte too many: error %v", m, err)
		}
	}
	if _, err := decode(99, nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("unknown type: error %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		var w pack.Writer
		m.put(&w)
		f.Add(m.kind(), w.Bytes())
	}
	f.Fuzz(func(t *testing.T, typ byte, payload []byte) {
		m, err := decode(typ, payload)
		if err != nil {
			return
		}

		var w pack.Writer
		m.put(&w)
		again, err := decode(m.kind(), w.Bytes())
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("got %+v, want %+v, error %v", again, m, err)
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

		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(r.Fd())
		}

		sent := make(chan error, 1)
		go func() { sent <- a.Send(7, Forget{ID: "web"}, fds) }()
		p, err := b.Recv()
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}

		if p.Seq != 7 || p.Msg != (Forget{ID: "web"}) || len(p.Files) != n {
			t.Errorf("%d files: got %d, sequence %d, %+v", n, len(p.Files), p.Seq, p.Msg)
		}
		for _, fd := range p.Files {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 || fd <= 2 {
				t.Fatalf("descriptor %d: flags %d, error %v", fd, flags, err)
			}
		}

		CloseAll(p.Files)
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

// TestNonsenseLeaksNothing sends packets that make no sense, with descriptors.
func TestNonsenseLeaksNothing(t *testing.T) {
	for name, send := range map[string]func(fd int, rights []byte) error{
		"empty":        func(fd int, r []byte) error { return unix.Sendmsg(fd, nil, r, nil, 0) },
		"short":        func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{1, 2}, r, nil, 0) },
		"unknown type": func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{99, 0, 0, 0, 0}, r, nil, 0) },
		"bad payload":  func(fd int, r []byte) error { return unix.Sendmsg(fd, []byte{typeForget, 0, 0, 0, 0, 9}, r, nil, 0) },
		"too long":     func(fd int, r []byte) error { return unix.Sendmsg(fd, make([]byte, maxPacket+1), r, nil, 0) },
		"files without their message": func(fd int, r []byte) error {
			if err := unix.Sendmsg(fd, []byte{typeMore, 1, 0, 0, 0}, r, nil, 0); err != nil {
				return err
			}
			return unix.Sendmsg(fd, []byte{typeList, 2, 0, 0, 0}, r, nil, 0)
		},
		"files without end": func(fd int, r []byte) error {
			for range maxFiles/2 + 1 {
				if err := unix.Sendmsg(fd, []byte{typeMore, 1, 0, 0, 0}, r, nil, 0); err != nil {
					return nil // the receiver has hung up
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
