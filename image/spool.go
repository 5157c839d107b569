package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// spoolMemory is the size up to which a document is kept in memory until the
// rest of its image has arrived, in bytes.
const spoolMemory = 64 << 10

// spool buffers a document: in memory while it is small, else in an unlinked
// file.
type spool struct {
	dir  string
	desc ocispec.Descriptor
	mem  []byte
	file *os.File
}

// Write appends to the document.
func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && len(s.mem)+len(p) <= spoolMemory {
		s.mem = append(s.mem, p...)
		return len(p), nil
	}
	if s.file == nil {
		if err := s.spill(); err != nil {
			return 0, fmt.Errorf("spool document: %w", err)
		}
	}
	return s.file.Write(p)
}

// spill moves the document to a file.
func (s *spool) spill() error {
	f, err := os.CreateTemp(s.dir, "document-*")
	if err != nil {
		return err
	}
	s.file = f
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	_, err = f.Write(s.mem)
	s.mem = nil
	return err
}

// reader reads the document from its beginning.
func (s *spool) reader() io.Reader {
	if s.file == nil {
		return bytes.NewReader(s.mem)
	}
	return io.NewSectionReader(s.file, 0, math.MaxInt64)
}

// Reset discards what was written.
func (s *spool) Reset() {
	s.close()
	s.mem, s.file = nil, nil
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// decoded calls f with a document's text, within the memory budget for the text
// and its decoded values. f may only keep copies of the text.
func (s *Service) decoded(ctx context.Context, doc *spool, f func(data []byte) error) error {
	values, err := countValues(doc.reader())
	if err != nil {
		return err
	}

	release, err := s.budget.Work(ctx, decodedSize(doc.desc.Size, values))
	if err != nil {
		return err
	}
	defer release()

	data := make([]byte, doc.desc.Size)
	if _, err := io.ReadFull(doc.reader(), data); err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	return f(data)
}

// decodedSize bounds the memory that decoding a document takes, in bytes: its
// text, the raw parts that are decoded later, the strings, and the values that
// hold them.
func decodedSize(size int64, values int) int64 {
	const value = 256
	return 3*size + int64(values)*value
}
