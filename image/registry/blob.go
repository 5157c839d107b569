package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxResumes bounds how often a download may be resumed without progress.
const maxResumes = 5

// Attempts records which hosts have failed to deliver a blob. The zero value is
// ready to use.
type Attempts struct{ refused map[*hop]bool }

// Blame records that what was read of a blob was wrong, and reports whether there
// is another host to read it from: the one that sent its beginning is not asked
// again.
func (a *Attempts) Blame(b *Blob) bool {
	a.refuse(b.first)
	return len(b.repo.order(request{}, a.refused)) > 0
}

func (a *Attempts) refuse(h *hop) {
	if a.refused == nil {
		a.refused = map[*hop]bool{}
	}
	a.refused[h] = true
}

// Blob streams a blob from offset on, which must be less than its size, or from
// its start if no host supports ranges: see [Blob.Start]. After a connection
// fails, the reader resumes where it was, from another host if need be. It does
// not verify: the caller, which sees every byte anyway, checks digest and size,
// and may ask again without the host that sent something else.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64, a *Attempts) (*Blob, error) {
	b := &Blob{ctx: ctx, repo: r, desc: desc, tries: a, start: offset, offset: offset, meter: &meter{window: min(rateTime, r.progress)}}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// Blob is a blob as one stream, over as many requests as necessary.
type Blob struct {
	// ctx is that of the download: Read takes none.
	ctx     context.Context
	repo    *Repository
	desc    ocispec.Descriptor
	tries   *Attempts
	start   int64     // offset in the blob of the stream's first byte
	offset  int64     // offset in the blob of the next byte
	text    io.Reader // decodes body, from offset on
	body    io.ReadCloser
	resumes int
	pending error // to be returned by the next Read
	// first is the host that sent the first byte, from the one in use.
	first, from *hop
	meter       *meter
}

// Start returns the offset in the blob, in bytes, of the first byte that is read:
// the requested one, or 0.
func (b *Blob) Start() int64 { return b.start }

// open requests the blob from offset on, and all of it if a host that has it does
// not support ranges and no other one does.
func (b *Blob) open() error {
	err := b.ask(b.offset > 0)
	if b.offset > 0 && sendsNoParts(err) && b.ctx.Err() == nil {
		err = b.ask(false)
	}
	return err
}

// ask requests the blob, with part only the range from offset on.
func (b *Blob) ask(part bool) error {
	q := b.repo.blobRequest(b.desc)
	if part {
		// With an explicit end: some registries refuse an open range.
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.offset, b.desc.Size-1))
		q.want = append(q.want, http.StatusPartialContent)
	}
	return b.repo.each(b.ctx, q, b.tries.refused, b.begin)
}

// errPart means that a host sent another range than the requested one.
var errPart = errors.New("not the requested range")

// sendsNoParts reports whether a host has refused a range, rather than the blob.
func sendsNoParts(err error) bool {
	var hops hopErrors
	if !errors.As(err, &hops) {
		return false
	}
	for _, h := range hops {
		var status *statusError
		if errors.Is(h.Err, errPart) || errors.As(h.Err, &status) && status.code == http.StatusRequestedRangeNotSatisfiable {
			return true
		}
	}
	return false
}

// begin makes a response the source of the stream's next bytes.
func (b *Blob) begin(h *hop, resp *http.Response) error {
	skip, offset := b.offset, b.offset
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		var err error
		if skip, err = b.skipTo(resp); err != nil {
			resp.Body.Close()
			return err
		}
	case b.body == nil: // nothing has been read yet: the stream starts at 0
		skip, offset = 0, 0
	}

	body := newWatchedBody(b.ctx, resp.Body, b.repo.progress, 0, b.meter)
	text := io.Reader(body)
	if resp.StatusCode == http.StatusOK {
		resp.Body = body
		var err error
		if text, err = b.repo.blobBody(resp, b.desc); err != nil {
			body.Close()
			return err
		}
	}

	// A complete response repeats what was read before.
	if _, err := io.CopyN(io.Discard, text, skip); err != nil {
		body.Close()
		return err
	}

	if b.body == nil {
		b.start, b.offset = offset, offset
	}
	b.text, b.body, b.from = text, body, h
	if b.offset == b.start {
		b.first = h
	}
	return nil
}

// skipTo checks the range of a partial response, and returns how many of its bytes
// are before offset.
func (b *Blob) skipTo(resp *http.Response) (int64, error) {
	given := resp.Header.Get("Content-Range")
	first, last, total, err := parseRange(given)
	if err != nil || first > b.offset || last < b.offset || last >= b.desc.Size || total >= 0 && total != b.desc.Size {
		return 0, fmt.Errorf("%w: %w: Content-Range %q instead of bytes %d-%d/%d", ErrProtocol, errPart, clean(given), b.offset, b.desc.Size-1, b.desc.Size)
	}
	// A range counts encoded bytes. If their total is the blob's size, they are the
	// blob itself, and the coding describes what is in it: see isCoded.
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && total != b.desc.Size {
		return 0, fmt.Errorf("%w: %w: content coding %q", ErrProtocol, errPart, clean(coding))
	}
	return b.offset - first, nil
}

// parseRange parses a Content-Range in bytes: the first and the last byte, counted
// from 0, and their total number, -1 if it is unknown.
func parseRange(s string) (first, last, total int64, err error) {
	unit, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	span, all, _ := strings.Cut(rest, "/")
	from, to, _ := strings.Cut(span, "-")
	numbers := []uint64{0, 0, 0}
	for i, text := range []string{from, to, all} {
		if i == 2 && text == "*" {
			continue
		}
		n, perr := strconv.ParseUint(text, 10, 63)
		numbers[i], err = n, errors.Join(err, perr)
	}
	if !strings.EqualFold(unit, "bytes") || err != nil || numbers[1] < numbers[0] {
		return 0, 0, 0, errPart
	}

	if total = int64(numbers[2]); all == "*" {
		total = -1
	}
	return int64(numbers[0]), int64(numbers[1]), total, nil
}

// Read reads the next bytes, and resumes after connections that fail. A blob that
// is too long is truncated to one byte more than its size, so that the caller
// notices.
func (b *Blob) Read(p []byte) (int, error) {
	if rest := b.desc.Size + 1 - b.offset; int64(len(p)) > rest {
		p = p[:max(rest, 0)]
	}
	if len(p) == 0 {
		return 0, io.EOF
	}

	for {
		n, err := 0, b.pending
		if b.pending = nil; err == nil {
			n, err = b.text.Read(p)
			b.offset += int64(n)
		}
		if n > 0 {
			b.pending = err
			b.resumes = 0
			return n, nil
		}

		if err == nil {
			return 0, nil
		}
		if b.offset >= b.desc.Size {
			return 0, io.EOF // there is nothing left to request
		}

		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume opens the rest of a stream that ended with cause: from the same host, or
// from another one if it has stalled or failed too often.
func (b *Blob) resume(cause error) error {
	for cause != nil {
		b.body.Close()
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}

		if errors.Is(cause, io.EOF) {
			cause = io.ErrUnexpectedEOF
		}
		start := time.Now()
		b.resumes++

		switch stalled := errors.Is(cause, errStalled); {
		case !stalled && b.resumes <= maxResumes:
			if err := sleep(b.ctx, firstBackoff<<(b.resumes-1)); err != nil {
				return err
			}
		case !b.leave(stalled):
			return b.broken(cause)
		}

		if err := b.open(); err != nil {
			return fmt.Errorf("resume blob %s at byte %d of %d, after %s failed with %q: %w", b.desc.Digest, b.offset, b.desc.Size, b.from.base.Host, clean(cause.Error()), err)
		}

		// The time counts against the minimum rate: a host that disconnects after
		// every byte is as slow as one that sends slowly.
		cause = b.meter.note(0, time.Since(start))
	}
	return nil
}

// leave gives up the current host, and reports whether there is another.
func (b *Blob) leave(stalled bool) bool {
	if stalled {
		b.from.down.Store(true) // it would stall the next layer too
	}
	b.tries.refuse(b.from)
	b.resumes, b.meter = 0, &meter{window: b.meter.window}
	return len(b.repo.order(request{}, b.tries.refused)) > 0
}

func (b *Blob) broken(cause error) error {
	return fmt.Errorf("%w: read blob %s at byte %d of %d from %s: %w", ErrUnavailable, b.desc.Digest, b.offset, b.desc.Size, b.from.base.Host, cause)
}

// Close ends the download.
func (b *Blob) Close() error { return b.body.Close() }
