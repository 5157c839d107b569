package move

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// BlockSize is the length of the blocks that are sent ahead, in bytes.
	BlockSize = 4096
	// MaxBlocks bounds how many of them there are: 16 GiB.
	MaxBlocks = 1 << 22
	// tagSize is the length of a fingerprint, in bytes.
	tagSize = 16
	// maxRun bounds how many of them a frame refers to, such that it stands for no more than
	// a frame of data may have.
	maxRun = maxData / BlockSize
	// knownSize is the length of the content of such a frame: the first block and how many,
	// each as four bytes in big endian.
	knownSize = 8
)

// Known are the blocks that the other node has, in their order, by their fingerprints.
//
// A fingerprint is the block's GHASH under a secret key of this set, which takes a fifth of
// the time of SHA-256: whatever is in two blocks, they have the same one with a probability of
// at most 2^-119, and nobody else ever sees one.
type Known struct {
	at    map[[tagSize]byte]uint32
	most  int
	hash  cipher.AEAD
	nonce []byte
}

// NewKnown returns an empty set for at most so many blocks, each of which takes about 40 bytes
// of memory.
func NewKnown(most int) (*Known, error) {
	var key [32]byte
	_, _ = rand.Read(key[:]) // it never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("make fingerprints of memory: %w", err)
	}
	hash, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make fingerprints of memory: %w", err)
	}
	return &Known{map[[tagSize]byte]uint32{}, most, hash, make([]byte, hash.NonceSize())}, nil
}

// of returns the fingerprint of a block: the tag of a message that is not there, with the block
// as the data that goes with it. With one nonce for all, such tags differ as GHASH does.
func (k *Known) of(block []byte) (f [tagSize]byte) {
	k.hash.Seal(f[:0], k.nonce, nil, block)
	return f
}

// Add adds a block of [BlockSize] bytes, and reports whether it is to be sent: the set has
// neither had it, nor as many others as it may have.
func (k *Known) Add(block []byte) (fresh bool) {
	f := k.of(block)
	if _, had := k.at[f]; had || len(k.at) >= k.most {
		return false
	}
	k.at[f] = uint32(len(k.at))
	return true
}

// Len is the number of blocks.
func (k *Known) Len() int { return len(k.at) }

// StreamKnown is like [Conn.Stream], but refers to the blocks that the other node has instead
// of sending them again. Blocks are looked for at multiples of their size from the beginning
// of each write.
func (c *Conn) StreamKnown(known *Known, write func(io.Writer) error) error {
	if known.Len() == 0 {
		return c.Stream(write)
	}
	return c.stream(&referrer{chunks: chunks{c}, known: known}, write)
}

// referrer writes frames of data, and such that refer to blocks.
type referrer struct {
	chunks
	known *Known
	// first and count are the blocks to refer to in the next frame.
	first, count uint32
}

func (w *referrer) Write(p []byte) (n int, err error) {
	literal := 0 // from where on p is to be written
	for at := 0; at+BlockSize <= len(p); at += BlockSize {
		index, ok := w.known.at[w.known.of(p[at:at+BlockSize])]
		if !ok {
			if err := w.flush(); err != nil {
				return n, err
			}
			continue
		}

		if literal < at {
			if _, err := w.chunks.Write(p[literal:at]); err != nil {
				return n, err
			}
		}
		literal = at + BlockSize
		if w.count > 0 && (index != w.first+w.count || w.count == maxRun) {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
		if w.count == 0 {
			w.first = index
		}
		w.count++
		n = literal
	}

	if literal < len(p) {
		if err := w.flush(); err != nil {
			return n, err
		}
		m, err := w.chunks.Write(p[literal:])
		return literal + m, err
	}
	return len(p), nil
}

// flush writes the frame that refers to the blocks so far.
func (w *referrer) flush() error {
	if w.count == 0 {
		return nil
	}
	var content [knownSize]byte
	binary.BigEndian.PutUint32(content[:4], w.first)
	binary.BigEndian.PutUint32(content[4:], w.count)
	w.count = 0
	return w.c.writeFrame(kindKnown, content[:])
}

// Blocks are those that the other node has sent ahead. The zero value has none.
type Blocks struct {
	io.ReaderAt
	Count int64
}

// run opens the blocks that a frame refers to.
func (b Blocks) run(frame []byte) (io.Reader, error) {
	first, count := int64(binary.BigEndian.Uint32(frame[:4])), int64(binary.BigEndian.Uint32(frame[4:]))
	if count == 0 || count > maxRun || first+count > b.Count {
		return nil, fmt.Errorf("%d blocks from %d on, and there are %d", count, first, b.Count)
	}
	return io.NewSectionReader(b, first*BlockSize, count*BlockSize), nil
}
