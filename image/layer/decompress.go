package layer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxWindow bounds the memory that a zstd stream may ask for.
	maxWindow = 128 << 20
	sniffSize = 64 << 10
)

var (
	gzipMagic  = []byte{0x1f, 0x8b}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	bzip2Magic = []byte("BZh")
)

// decompress returns the archive in r, whose compression shows in its first
// bytes: media types are not to be relied on. Much allows for what takes much memory.
func decompress(r io.Reader, much bool) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, sniffSize)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}

	switch {
	case bytes.HasPrefix(head, gzipMagic):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return zr, nil
	case bytes.HasPrefix(head, zstdMagic), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		checked := &frames{r: br, max: smallWindow, tooLarge: ErrMuch}
		if much {
			checked.max, checked.tooLarge = maxWindow, ErrTooLarge
		}
		zr, err := zstd.NewReader(checked, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return zr.IOReadCloser(), nil
	case bytes.HasPrefix(head, xzMagic), bytes.HasPrefix(head, bzip2Magic):
		return nil, fmt.Errorf("%w: neither tar, gzip nor zstd", ErrUnsupported)
	default:
		return io.NopCloser(br), nil
	}
}

// isCompressionError reports whether a decompressor found its input broken.
func isCompressionError(err error) bool {
	for _, known := range []error{
		gzip.ErrHeader, gzip.ErrChecksum,
		zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrBlockTooSmall, zstd.ErrReservedBlockType,
		zstd.ErrWindowSizeExceeded, zstd.ErrWindowSizeTooSmall, zstd.ErrUnknownDictionary,
		zstd.ErrCompressedSizeTooBig, zstd.ErrUnexpectedBlockSize, zstd.ErrDecoderSizeExceeded,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	var corrupt flate.CorruptInputError
	return errors.As(err, &corrupt)
}
