package layer

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	// smallWindow is the window, in bytes, up to which a zstd frame needs little
	// memory: what every decoder has to support according to RFC 8878.
	smallWindow = 8 << 20

	blockHeader   = 3
	frameChecksum = 4
	// rleBlock is the type of a block that repeats a single byte.
	rleBlock = 1
)

// frames passes a zstd stream through, and stops with an error before a frame
// whose window exceeds max bytes: a decoder would allocate it at once, at any
// frame of the stream.
type frames struct {
	r   *bufio.Reader
	max uint64
	// tooLarge is the error for a frame with a larger window.
	tooLarge error

	rest     int64 // bytes up to the next header
	inFrame  bool
	checksum bool // the current frame ends with a checksum
	last     bool // the current block is the last one of its frame
}

// Read reads the stream up to the next header.
func (f *frames) Read(p []byte) (int, error) {
	for f.rest == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.rest)])
	f.rest -= int64(n)
	return n, err
}

// next reads ahead to the next header.
func (f *frames) next() error {
	switch {
	case !f.inFrame:
		return f.frame()
	case !f.last:
		return f.block()
	}
	f.inFrame, f.last = false, false
	if f.checksum {
		f.rest = frameChecksum
	}
	return nil
}

// frame checks the header of a frame.
func (f *frames) frame() error {
	head, err := f.r.Peek(zstd.HeaderMaxSize)
	if len(head) == 0 {
		return err
	}

	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return fmt.Errorf("%w: zstd: %w", ErrInvalid, err)
	}

	f.rest = int64(h.HeaderSize)
	if h.Skippable {
		f.rest += int64(h.SkippableSize)
		return nil
	}

	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	if window > f.max {
		return fmt.Errorf("%w: zstd window of %d bytes, limit %d", f.tooLarge, window, f.max)
	}

	f.inFrame, f.checksum = true, h.HasCheckSum
	return nil
}

// block parses the header of a block.
func (f *frames) block() error {
	head, err := f.r.Peek(blockHeader)
	if len(head) < blockHeader {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}

	bits := uint32(head[0]) | uint32(head[1])<<8 | uint32(head[2])<<16
	f.last = bits&1 != 0
	size := int64(bits >> 3)
	if bits>>1&3 == rleBlock {
		size = 1
	}

	f.rest = blockHeader + size
	return nil
}
