package pod

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/move"
	"crisp/cri/spec"
	"crisp/runtime/checkpoint"
)

// talk begins a conversation with a node, which ends with what is returned.
func talk(t *testing.T, m *Manager) (peer *move.Conn, ended chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	ended = make(chan error, 1)
	go func() {
		ended <- m.Receive(t.Context(), move.NewConn(theirs))
		theirs.Close()
	}()
	return move.NewConn(ours), ended
}

// offered is an offer that is fine as far as it can be told without a container.
func offered(t *testing.T, change func(*move.Message, *PodDump)) move.Message {
	t.Helper()
	dump := PodDump{
		Version: podDumpVersion,
		Config:  message(&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "test", Uid: "u"}}),
		Containers: []ContainerDump{{Name: "app", Config: message(&runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, Image: &runtimeapi.ImageSpec{Image: "busybox"},
		})}},
	}

	o := move.Message{Type: move.Offer, Version: move.Version, Token: newID()}
	change(&o, &dump)
	if o.Dump == nil {
		text, err := json.Marshal(dump)
		if err != nil {
			t.Fatal(err)
		}
		o.Dump = text
	}
	return o
}

// TestReceiveRefuses has offers that are refused, with the reason, before anything is made.
func TestReceiveRefuses(t *testing.T) {
	m := storingManager(t)
	m.Root = t.TempDir()
	m.choices.Store(&Choices{})
	for name, test := range map[string]struct {
		change func(*move.Message, *PodDump)
		want   error
		says   string
	}{
		"another version":    {func(o *move.Message, _ *PodDump) { o.Version = 7 }, ErrInvalid, "version 7"},
		"no token":           {func(o *move.Message, _ *PodDump) { o.Token = "" }, ErrInvalid, "token"},
		"a path":             {func(o *move.Message, _ *PodDump) { o.Token = "../../etc/passwd" }, ErrInvalid, "token"},
		"a path, to settle":  {func(o *move.Message, _ *PodDump) { o.Token, o.Settle = strings.Repeat("../", 21)+"a", true }, ErrInvalid, "token"},
		"no dump":            {func(o *move.Message, _ *PodDump) { o.Dump = json.RawMessage("{}") }, checkpoint.ErrInvalid, "version"},
		"no pod":             {func(_ *move.Message, d *PodDump) { d.Config.Msg.Metadata = nil }, spec.ErrInvalid, "metadata"},
		"no container":       {func(_ *move.Message, d *PodDump) { d.Containers = nil }, ErrInvalid, "no container"},
		"another name":       {func(_ *move.Message, d *PodDump) { d.Containers[0].Name = "other" }, checkpoint.ErrInvalid, "other"},
		"twice":              {func(_ *move.Message, d *PodDump) { d.Containers = append(d.Containers, d.Containers[0]) }, ErrInvalid, "twice"},
		"another handler":    {func(_ *move.Message, d *PodDump) { d.Handler = "kata" }, ErrInvalid, "kata"},
		"many addresses":     {func(o *move.Message, _ *PodDump) { o.Addresses = make([]string, maxAddresses+1) }, ErrInvalid, "addresses"},
		"what is no address": {func(o *move.Message, _ *PodDump) { o.Addresses = []string{"10.0.0.1/24"} }, ErrInvalid, "address"},
	} {
		peer, ended := talk(t, m)
		if err := peer.Send(offered(t, test.change)); err != nil {
			t.Fatal(err)
		}

		_, err := peer.Receive(move.Answer)
		if !errors.Is(err, move.ErrRefused) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: the other node hears %v", name, err)
		}
		if err := <-ended; !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if len(m.arrivals) > 0 || m.conversations.Load() > 0 {
		t.Errorf("%d pods are coming, %d nodes talk", len(m.arrivals), m.conversations.Load())
	}
}

// TestReceiveIsBounded has more nodes than may talk at a time. They say nothing.
func TestReceiveIsBounded(t *testing.T) {
	m := storingManager(t)
	for range maxConversations {
		talk(t, m)
	}
	for end := time.Now().Add(10 * time.Second); m.conversations.Load() < maxConversations; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d nodes talk", m.conversations.Load())
		}
	}
	_, ended := talk(t, m)
	if err := <-ended; !errors.Is(err, ErrState) {
		t.Errorf("one more: %v", err)
	}
}

// TestSettled asks for pods that came here, and did not.
func TestSettled(t *testing.T) {
	m := storingManager(t)
	m.Root = t.TempDir()
	m.choices.Store(&Choices{})
	here, removed, never := newID(), newID(), newID()
	p := begunPod(t, m, "pod")
	if err := p.update(func(r *Record) { r.Arrived = here }); err != nil {
		t.Fatal(err)
	}
	gone := begunPod(t, m, "gone")
	if err := errors.Join(gone.update(func(r *Record) { r.Arrived = removed }), gone.noteGone()); err != nil {
		t.Fatal(err)
	}
	m.unregister(gone)
	ordinary := begunPod(t, m, "ordinary")
	if err := ordinary.noteGone(); err != nil {
		t.Error(err)
	}

	for token, want := range map[string]string{here: p.record().ID, removed: gone.record().ID, never: ""} {
		peer, ended := talk(t, m)
		if err := peer.Send(move.Message{Type: move.Offer, Version: move.Version, Token: token, Settle: true}); err != nil {
			t.Fatal(err)
		}
		answer, err := peer.Receive(move.Settled)
		if err != nil || answer.ID != want || answer.Node == "" {
			t.Errorf("%s: %+v, %v, want %q", token, answer, err, want)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}

	// Notes end.
	note := filepath.Join(m.Root, goneDir, removed)
	long := time.Now().Add(-goneTime - time.Hour)
	m.forgetGone()
	if _, err := os.Stat(note); err != nil {
		t.Error(err)
	}
	if err := os.Chtimes(note, long, long); err != nil {
		t.Fatal(err)
	}
	m.forgetGone()
	if left, err := os.ReadDir(filepath.Dir(note)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
