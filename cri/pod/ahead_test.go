package pod

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crisp/cri/move"
	"crisp/runtime/checkpoint"
	"crisp/runtime/pages"
)

// conversation is both ends of one.
func conversation(t *testing.T) (a, b *move.Conn) {
	t.Helper()
	x, y := net.Pipe()
	t.Cleanup(func() { x.Close(); y.Close() })
	return move.NewConn(x), move.NewConn(y)
}

// reading is a stand-in for [Options.ReadPages]: processes whose memory is that many blocks, of
// which some change from one round to the next.
type reading struct {
	rounds  int
	changes []int
	err     error
}

func (r *reading) read(_ context.Context, _ []pages.Lister, use func(block []byte) error) error {
	block := make([]byte, move.BlockSize)
	for i := range r.changes[r.rounds] {
		binary.NativeEndian.PutUint32(block, uint32(r.rounds))
		binary.NativeEndian.PutUint32(block[4:], uint32(i))
		if err := use(block); err != nil {
			return err
		}
	}
	r.rounds++
	return r.err
}

// ahead is an attempt to move a pod, which has sent nothing yet.
func ahead(t *testing.T, m *Manager) *moving {
	t.Helper()
	known, err := move.NewKnown(move.MaxBlocks)
	if err != nil {
		t.Fatal(err)
	}
	return &moving{p: begunPod(t, m, "pod"), known: known}
}

// openBelow are the files below a directory that this process has open, with and without names.
func openBelow(t *testing.T, dir string) (files []string) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir+"/") {
			files = append(files, target)
		}
	}
	return files
}

// TestAhead sends memory in rounds, as many as pay.
func TestAhead(t *testing.T) {
	const some = enoughAhead
	for name, c := range map[string]struct {
		reading
		rounds, blocks int
	}{
		"little":          {reading{changes: []int{10, 0}}, 1, 10},
		"nothing changes": {reading{changes: []int{4 * some, 0, 0}}, 2, 4 * some},
		"less and less":   {reading{changes: []int{8 * some, 3 * some, some + 1, 5, 0}}, 4, 12*some + 6},
		"much changes":    {reading{changes: []int{4 * some, 3 * some, 3 * some, 3 * some}}, 2, 7 * some},
		"always more":     {reading{changes: []int{2 * some, 2 * some, 2 * some}}, 2, 4 * some},
		"it fails":        {reading{changes: []int{10, 0}, err: errors.New("it was killed")}, 1, 10},
	} {
		m := storingManager(t)
		m.Root, m.ReadPages = t.TempDir(), c.read
		mv := ahead(t, m)
		var other *move.Conn
		mv.peer, other = conversation(t)
		ended := make(chan error, 1)
		go func() {
			ended <- errors.Join(mv.sendAhead(t.Context(), nil), mv.peer.Send(move.Message{Type: move.Saved}))
		}()

		f, count, err := m.receiveAhead(t.Context(), other)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.rounds, c.blocks = c.rounds-c.reading.rounds, c.blocks-int(count); c.rounds != 0 || c.blocks != 0 || mv.known.Len() != int(count) {
			t.Errorf("%s: %d rounds and %d blocks less than expected, %d of %d known", name, c.rounds, c.blocks, mv.known.Len(), count)
		}
		if info, err := f.Stat(); err != nil || info.Size() != count*move.BlockSize {
			t.Errorf("%s: the file has %v, %v", name, info, err)
		}
		f.Close()
		if left, err := os.ReadDir(filepath.Join(m.Root, stagesDir)); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

// TestAheadEnds has the connection break, and a peer send too much, or something else.
func TestAheadEnds(t *testing.T) {
	m := storingManager(t)
	m.Root = t.TempDir()
	r := reading{changes: []int{1000}}
	m.ReadPages = r.read
	mv := ahead(t, m)
	var other *move.Conn
	mv.peer, other = conversation(t)
	go other.Close()
	if err := mv.sendAhead(t.Context(), nil); !errors.Is(err, move.ErrLost) {
		t.Errorf("a connection that breaks: %v", err)
	}

	mv.peer, other = conversation(t)
	go func() { _ = mv.peer.Send(move.Message{Type: move.Go}) }()
	if _, _, err := m.receiveAhead(t.Context(), other); !errors.Is(err, move.ErrLost) {
		t.Errorf("another message: %v", err)
	}
	mv.peer, other = conversation(t)
	go func() {
		_ = mv.peer.Send(move.Message{Type: move.Ahead})
		_ = mv.peer.Stream(func(w io.Writer) error { _, err := w.Write(make([]byte, 100)); return err })
		mv.peer.Close()
	}()
	if _, _, err := m.receiveAhead(t.Context(), other); !errors.Is(err, move.ErrLost) {
		t.Errorf("half of it: %v", err)
	}
	if left := openBelow(t, m.Root); len(left) > 0 {
		t.Errorf("left open: %q", left)
	}

	f, err := os.Create(filepath.Join(t.TempDir(), "ahead"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := &bounded{f: f, most: 100}
	if _, err := to.Write(make([]byte, 100)); err != nil {
		t.Error(err)
	}
	if _, err := to.Write(make([]byte, 1)); !errors.Is(err, checkpoint.ErrTooLarge) {
		t.Errorf("too much: %v", err)
	}
}
