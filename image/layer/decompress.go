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
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxWindow bounds the memory that a zstd stream may demand.
	maxWindow = 128 << 20
	sniffSize = 64 << 10
	// HeadSize is how many of the first bytes of a layer say how it is compressed.
	HeadSize = 6
)

var (
	gzipMagic  = []byte{0x1f, 0x8b}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	bzip2Magic = []byte("BZh")
)

// MediaType returns the media type of a layer by its first bytes, [HeadSize] of them if it
// has so many.
func MediaType(head []byte) string {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return ocispec.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head, zstdMagic), isSkippableFrame(head):
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// Decompress returns the archive in r, which may be compressed with gzip or with zstd, of
// a window of at most 8 MiB: more is ErrTooLarge.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	z, err := decompress(r, false)
	if err != nil {
		return nil, err
	}
	return small{z}, nil
}

// small is a stream that must not need much memory.
type small struct{ io.ReadCloser }

func (s small) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	switch {
	case errors.Is(err, ErrNeedsMemory):
		err = fmt.Errorf("%w: compress it without a long window (zstd --long, --ultra): %v", ErrTooLarge, err)
	case isCompressionError(err):
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return n, err
}

// decompress returns the archive in r. It recognises the compression by the first
// bytes, since media types are not reliable. large permits large zstd windows.
func decompress(r io.Reader, large bool) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, sniffSize)
	head, err := br.Peek(HeadSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}

	switch kind := MediaType(head); {
	case kind == ocispec.MediaTypeImageLayerGzip:
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return zr, nil
	case kind == ocispec.MediaTypeImageLayerZstd:
		return decompressZstd(br, large)
	case bytes.HasPrefix(head, xzMagic), bytes.HasPrefix(head, bzip2Magic):
		return nil, fmt.Errorf("%w: neither tar, gzip nor zstd", ErrUnsupported)
	default:
		return io.NopCloser(br), nil
	}
}

// isSkippableFrame reports whether a zstd stream begins with a frame that is
// skipped (RFC 8878, 3.1.2), as zstd:chunked layers may: 0x184D2A50 to
// 0x184D2A5F, little-endian.
func isSkippableFrame(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

func decompressZstd(br *bufio.Reader, large bool) (io.ReadCloser, error) {
	checked := &frames{r: br, max: smallWindow, tooLarge: ErrNeedsMemory}
	if large {
		checked.max, checked.tooLarge = maxWindow, ErrTooLarge
	}

	zr, err := zstd.NewReader(checked, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return zr.IOReadCloser(), nil
}

// isCompressionError reports whether a decompressor found its input corrupt.
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
