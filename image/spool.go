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

// spoolMemory is up to which size a document waits in memory for the rest of
// its image.
const spoolMemory = 64 << 10

// spool keeps a document on its way: in memory while it is small, else in a
// file without a name.
type spool struct {
	dir  string
	desc ocispec.Descriptor
	mem  []byte
	file *os.File
}

// Write takes the next bytes.
func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && len(s.mem)+len(p) <= spoolMemory {
		s.mem = append(s.mem, p...)
		return len(p), nil
	}
	if s.file == nil {
		if err := s.spill(); err != nil {
			return 0, fmt.Errorf("keep document: %w", err)
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

// Reset drops what was written.
func (s *spool) Reset() {
	s.close()
	s.mem, s.file = nil, nil
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// decoded calls f with a document's text once there is memory for it and what
// it decodes to. Nothing of the text may be kept but copies.
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

// decodedSize bounds what decoding a document takes: its text, the parts of it
// that are decoded later, the strings, and what holds them.
func decodedSize(size int64, values int) int64 {
	const value = 256
	return 3*size + int64(values)*value
}
