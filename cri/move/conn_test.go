package move

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// pair is both ends of a conversation.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	x, y := net.Pipe()
	t.Cleanup(func() { x.Close(); y.Close() })
	return NewConn(x), NewConn(y)
}

// spoken is what a peer says, who then goes.
type spoken struct{ io.Reader }

func (spoken) Write(p []byte) (int, error) { return len(p), nil }
func (spoken) Close() error                { return nil }
func (spoken) SetDeadline(time.Time) error { return nil }

// written is where a conversation is written to.
type written struct{ *bytes.Buffer }

func (written) Close() error                { return nil }
func (written) SetDeadline(time.Time) error { return nil }

func says(text string) *Conn { return NewConn(spoken{strings.NewReader(text)}) }

// frame is a frame of any kind and length.
func frame(kind byte, size uint32, content string) string {
	return string(kind) + string(binary.BigEndian.AppendUint32(nil, size)) + content
}

func message(text string) string { return frame(kindMessage, uint32(len(text)), text) }

func TestConversation(t *testing.T) {
	a, b := pair(t)
	big := strings.Repeat("memory", 1<<20)
	ended := make(chan error, 1)
	go func() {
		ended <- errors.Join(
			a.Send(Message{Type: Offer, Version: Version, Token: "t", Images: []string{"i"}}),
			a.Stream(func(w io.Writer) error { _, err := io.WriteString(w, big); return err }),
			a.Stream(func(io.Writer) error { return nil }),
			a.Send(Message{Type: Go}))
	}()

	m, err := b.Receive(Offer)
	if err != nil || m.Token != "t" || len(m.Images) != 1 {
		t.Fatalf("received %+v, %v", m, err)
	}
	var got []byte
	if err := b.Streamed(func(r io.Reader) (err error) { got, err = io.ReadAll(r); return err }); err != nil || string(got) != big {
		t.Fatalf("received %d bytes, %v", len(got), err)
	}
	// Who reads nothing of a stream is at its end afterwards.
	if err := b.Streamed(func(io.Reader) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(Go); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// TestStreamThatFails has the sender fail in the middle, and the receiver.
func TestStreamThatFails(t *testing.T) {
	a, b := pair(t)
	why, ended := errors.New("the disk failed"+strings.Repeat("é", maxReason)), make(chan error, 1)
	go func() {
		ended <- a.Stream(func(w io.Writer) error { _, err := io.WriteString(w, "part"); return errors.Join(err, why) })
	}()
	err := b.Streamed(func(r io.Reader) error { _, err := io.ReadAll(r); return err })
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "the disk failed") {
		t.Errorf("the receiver got %.200v", err)
	}
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("the sender got %.200v", err)
	}

	go func() {
		ended <- errors.Join(a.Stream(func(w io.Writer) error { _, err := io.WriteString(w, "part"); return err }), a.Send(Message{Type: Go}))
	}()
	if err := b.Streamed(func(io.Reader) error { return why }); !errors.Is(err, why) {
		t.Errorf("the receiver got %v", err)
	}
	if _, err := b.Receive(Go); err != nil { // the conversation goes on
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestHostilePeers has peers that say what is none of the protocol.
func TestHostilePeers(t *testing.T) {
	for name, said := range map[string]string{
		"nothing":          "",
		"half a header":    "m\x00\x00",
		"half a message":   frame(kindMessage, 100, `{"Type":"go"}`),
		"a huge message":   frame(kindMessage, 1<<31, ""),
		"an unknown kind":  frame('x', 0, ""),
		"data":             frame(kindData, 2, "{}"),
		"no JSON":          message("Go"),
		"many values":      message("[" + strings.Repeat("0,", maxMessageValues) + "0]"),
		"another message":  message(`{"Type":"runs"}`),
		"a message of nil": message("null"),
		"a report":         frame(KindReport, 2, "{}"),
		"a greeting":       "SSH-2.0-OpenSSH_9.2\r\n",
	} {
		if m, err := says(said).Receive(Go); !errors.Is(err, ErrLost) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	_, err := says(message(`{"Type":"failed","Reason":"a\u001b[31mb` + strings.Repeat("c", maxReason) + `"}`)).Receive(Go)
	if !errors.Is(err, ErrRefused) || strings.ContainsRune(err.Error(), 0x1b) || len(err.Error()) > maxReason+100 {
		t.Errorf("a reason: %.200v", err)
	}

	for name, said := range map[string]string{
		"nothing":        "",
		"half":           frame(kindData, 10, "12345"),
		"huge data":      frame(kindData, maxData+1, ""),
		"a message":      message(`{"Type":"go"}`),
		"without an end": frame(kindData, 2, "12"),
		"a long reason":  frame(kindEnd, maxReason+1, ""),
		"half a reason":  frame(kindEnd, 10, "12345"),
	} {
		if err := says(said).Streamed(func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }); !errors.Is(err, ErrLost) {
			t.Errorf("stream of %s: %v", name, err)
		}
	}
}

// TestWhile ends a conversation whose peer says nothing.
func TestWhile(t *testing.T) {
	a, _ := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	defer a.While(ctx)()
	if _, err := a.Receive(Go); !errors.Is(err, ErrLost) {
		t.Errorf("received %v", err)
	}
}

// TestRelay carries a conversation up to the report, also when the other node is gone.
func TestRelay(t *testing.T) {
	var said bytes.Buffer
	c := NewConn(written{&said})
	big := strings.Repeat("memory", 1<<18)
	err := errors.Join(c.Send(Message{Type: Go}), c.Stream(func(w io.Writer) error { _, err := io.WriteString(w, big); return err }))
	if err != nil {
		t.Fatal(err)
	}
	want := said.String()
	if err := c.Report(Report{ID: "p", Frozen: 7}); err != nil {
		t.Fatal(err)
	}
	all := said.String()

	var to bytes.Buffer
	if r, err := Relay(strings.NewReader(all), &to); err != nil || r.ID != "p" || r.Frozen != 7 || to.String() != want {
		t.Errorf("report %+v, %v; %d of %d bytes", r, err, to.Len(), len(want))
	}
	gone, _ := net.Pipe()
	gone.Close()
	if r, err := Relay(strings.NewReader(all), gone); err != nil || r.ID != "p" {
		t.Errorf("report %+v, %v", r, err)
	}
	for _, cut := range []int{0, 3, 30, len(want) - 1, len(all) - 1} {
		if _, err := Relay(strings.NewReader(all[:cut]), io.Discard); !errors.Is(err, ErrLost) {
			t.Errorf("cut after %d bytes: %v", cut, err)
		}
	}
}
