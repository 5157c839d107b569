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

// maxResumes bounds how often a download may break off without progress.
const maxResumes = 5

// Attempts remembers which hosts have failed a blob. Its zero value is ready.
type Attempts struct{ refused map[*hop]bool }

// Blame notes that what was read of a blob is not the blob, and reports
// whether there is another host to read it from: the one that sent its
// beginning is not asked again.
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

// Blob streams what follows the first offset bytes of a blob, fewer than it
// has, or all of it if no host sends parts: see [Blob.Start]. The reader takes
// the download up again where it broke off, from another host if need be. It
// does not verify: the caller, who sees every byte anyway, compares digest and
// size, and may ask again without the host that it got something else from.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64, a *Attempts) (*Blob, error) {
	b := &Blob{ctx: ctx, repo: r, desc: desc, tries: a, start: offset, offset: offset, meter: &meter{window: min(rateTime, r.progress)}}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// Blob is a blob as one stream, over as many requests as it takes.
type Blob struct {
	// An io.Reader has no room for a context: it is that of the download.
	ctx     context.Context
	repo    *Repository
	desc    ocispec.Descriptor
	tries   *Attempts
	start   int64     // of the stream in the blob
	offset  int64     // of what is read next
	text    io.Reader // the bytes from offset on, read from body
	body    io.ReadCloser
	resumes int
	pending error // what a read ended with that brought something, too
	// first is the host that sent the beginning, from the one that sends now.
	first, from *hop
	meter       *meter
}

// Start is the offset in the blob, in bytes, of the first byte that is read:
// the one asked for, or 0.
func (b *Blob) Start() int64 { return b.start }

// open asks for the blob from offset on, and for all of it if somebody has it
// but nobody sends the part.
func (b *Blob) open() error {
	err := b.ask(b.offset > 0)
	if b.offset > 0 && sendsNoParts(err) && b.ctx.Err() == nil {
		err = b.ask(false)
	}
	return err
}

func (b *Blob) ask(part bool) error {
	q := b.repo.blobRequest(b.desc)
	if part {
		// With its end, though it is the blob's: some registries want one.
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.offset, b.desc.Size-1))
		q.want = append(q.want, http.StatusPartialContent)
	}
	return b.repo.each(b.ctx, q, b.tries.refused, b.begin)
}

// errPart means that what a host sent is not the part of a blob it was asked for.
var errPart = errors.New("not the part asked for")

// sendsNoParts reports whether a host has refused because it was asked for a part.
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

// begin takes an answer for the stream's next part.
func (b *Blob) begin(h *hop, resp *http.Response) error {
	skip, offset := b.offset, b.offset
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		var err error
		if skip, err = b.skipTo(resp); err != nil {
			resp.Body.Close()
			return err
		}
	case b.body == nil: // nothing has been read: what comes is better than what is here
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

// skipTo tells how much of a partial answer lies before offset.
func (b *Blob) skipTo(resp *http.Response) (int64, error) {
	given := resp.Header.Get("Content-Range")
	first, last, total, err := parseRange(given)
	if err != nil || first > b.offset || last < b.offset || last >= b.desc.Size || total >= 0 && total != b.desc.Size {
		return 0, fmt.Errorf("%w: %w: Content-Range %q instead of bytes %d-%d/%d", ErrProtocol, errPart, clean(given), b.offset, b.desc.Size-1, b.desc.Size)
	}
	// A range is one of the bytes as they are coded. Those of the right total
	// are the blob's own, whatever a store says of its files.
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && total != b.desc.Size {
		return 0, fmt.Errorf("%w: %w: content coding %q", ErrProtocol, errPart, clean(coding))
	}
	return b.offset - first, nil
}

// parseRange reads a Content-Range of bytes: the first and last, counted from
// 0, and how many there are in all, -1 if that is not told.
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

// Read reads on, over broken connections. A blob that is longer than it
// should be is cut off one byte late, for the caller to notice.
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
			return 0, io.EOF // there is nothing more to ask for
		}

		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume opens the rest of a stream that ended with cause: where it was, or
// from another host if this one has stalled or broken off too often.
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
			return fmt.Errorf("resume blob %s at byte %d of %d, where %s had ended with %q: %w", b.desc.Digest, b.offset, b.desc.Size, b.from.base.Host, clean(cause.Error()), err)
		}

		// Who breaks off after every byte is as slow as who drips.
		cause = b.meter.note(0, time.Since(start))
	}
	return nil
}

// leave gives a host up, and reports whether there is another.
func (b *Blob) leave(stalled bool) bool {
	if stalled {
		b.from.down.Store(true) // it would stall the next layer, too
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
