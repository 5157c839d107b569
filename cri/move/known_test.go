package move

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// blocks returns so many blocks of random bytes.
func blocks(t *testing.T, n int) []byte {
	t.Helper()
	all := make([]byte, n*BlockSize)
	if _, err := rand.Read(all); err != nil {
		t.Fatal(err)
	}
	return all
}

func newKnown(t *testing.T, most int) *Known {
	t.Helper()
	known, err := NewKnown(most)
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// TestKnown sends streams with blocks that the other end has, in any order and between others.
func TestKnown(t *testing.T) {
	ahead, other := blocks(t, 200), blocks(t, 10)
	known := newKnown(t, MaxBlocks)
	for block := range slices.Chunk(ahead, BlockSize) {
		if !known.Add(block) {
			t.Fatal("a block is not fresh")
		}
		if known.Add(block) {
			t.Fatal("a block is fresh twice")
		}
	}

	at := func(i, n int) []byte { return ahead[i*BlockSize : (i+n)*BlockSize] }
	for name, c := range map[string]struct {
		writes [][]byte
		most   int // bytes of the connection
	}{
		"nothing":         {nil, 20},
		"all":             {[][]byte{ahead}, 100},
		"all in parts":    {slices.Collect(slices.Chunk(ahead, BlockSize)), 100},
		"backwards":       {[][]byte{at(3, 1), at(2, 1), at(1, 1), at(0, 1)}, 100},
		"between others":  {[][]byte{other[:5*BlockSize], at(7, 20), other[5*BlockSize:], at(100, 30), []byte("the end")}, len(other) + 200},
		"in one write":    {[][]byte{slices.Concat(other[:BlockSize], at(7, 20), other[BlockSize:], at(100, 30), []byte("the end"))}, len(other) + 200},
		"none of them":    {[][]byte{other}, len(other) + 100},
		"less than one":   {[][]byte{ahead[:100], ahead[100:BlockSize]}, BlockSize + 100},
		"not at a border": {[][]byte{ahead[:10], ahead[10:]}, len(ahead) + 100},
		"known, then end": {[][]byte{at(5, 1), []byte("x")}, 100},
	} {
		var said bytes.Buffer
		err := NewConn(written{&said}).StreamKnown(known, func(w io.Writer) error {
			for _, p := range c.writes {
				if n, err := w.Write(p); n != len(p) || err != nil {
					t.Errorf("%s: wrote %d of %d bytes, %v", name, n, len(p), err)
				}
			}
			return nil
		})
		if err != nil || said.Len() > c.most {
			t.Errorf("%s: %d bytes, and should have at most %d, %v", name, said.Len(), c.most, err)
		}

		var got []byte
		err = says(said.String()).StreamedKnown(Blocks{bytes.NewReader(ahead), 200}, func(r io.Reader) (err error) { got, err = io.ReadAll(r); return err })
		if want := slices.Concat(c.writes...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: received %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
}

// TestKnownIsBounded adds more blocks than may be sent.
func TestKnownIsBounded(t *testing.T) {
	known, fresh := newKnown(t, 3), 0
	for block := range slices.Chunk(blocks(t, 5), BlockSize) {
		if known.Add(block) {
			fresh++
		}
	}
	if fresh != 3 || known.Len() != 3 {
		t.Errorf("%d blocks were fresh, and %d are known", fresh, known.Len())
	}
}

// TestHostileReferences has a peer refer to blocks that it has not sent.
func TestHostileReferences(t *testing.T) {
	refer := func(first, count uint32) string {
		return frame(kindKnown, knownSize, string(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, first), count)))
	}
	have := Blocks{bytes.NewReader(blocks(t, 3)), 3}
	for name, c := range map[string]struct {
		said string
		have Blocks
	}{
		"none":       {refer(0, 0), have},
		"beyond":     {refer(3, 1), have},
		"in part":    {refer(2, 2), have},
		"overflow":   {refer(1<<32-1, 1<<32-1), have},
		"a long run": {refer(0, maxRun+1), Blocks{bytes.NewReader(nil), 1 << 20}},
		"nothing":    {refer(0, 1), Blocks{}},
		"short":      {frame(kindKnown, 4, "\x00\x00\x00\x00"), have},
		"cut":        {frame(kindKnown, knownSize, "\x00\x00\x00\x00"), have},
		"longer":     {frame(kindKnown, knownSize+1, "\x00\x00\x00\x00\x00\x00\x00\x01x"), have},
	} {
		err := says(c.said).StreamedKnown(c.have, func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err })
		if !errors.Is(err, ErrLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := says(refer(0, 1)).Receive(Go); !errors.Is(err, ErrLost) {
		t.Errorf("instead of a message: %v", err)
	}

	// What was kept cannot be read: the disk's fault, not the peer's.
	err := says(refer(0, 1)+frame(kindEnd, 0, "")).StreamedKnown(Blocks{broken{}, 3}, func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err })
	if err == nil || errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "sent ahead") {
		t.Errorf("a disk that fails: %v", err)
	}
}

// broken is a disk that fails.
type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }
