package registry

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// content is what a request sends.
type content struct {
	open func() (io.ReadCloser, error)
	size int64
	// limit bounds the time in which the host takes nothing, and that until its response
	// begins once it has everything. Less than minRate in window has stalled.
	limit, window time.Duration
}

// content is that of a request which sends what desc describes.
func (p *Pusher) content(desc ocispec.Descriptor, open func() (io.ReadCloser, error)) *content {
	limit := p.repo.progress
	return &content{open, desc.Size, limit, min(rateTime, limit)}
}

// attach adds the content to a request, nil for none. The transport closes it.
func (c *content) attach(req *http.Request, w *wait) error {
	if c == nil || c.size == 0 {
		return nil
	}
	req.ContentLength = c.size
	// Redirects and retries begin anew.
	req.GetBody = func() (io.ReadCloser, error) {
		from, err := c.open()
		if err != nil {
			return nil, &sourceError{err}
		}
		return &sending{from: from, wait: w, meter: &meter{window: c.window}}, nil
	}
	var err error
	req.Body, err = req.GetBody()
	return err
}

// sourceError means that what was to be sent could not be read.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// sending is content that is being sent.
type sending struct {
	from  io.ReadCloser
	wait  *wait
	meter *meter
	// taken is when the transport took the last n bytes, which are sent when it wants
	// more.
	taken time.Time
	n     int
}

func (s *sending) Read(p []byte) (int, error) {
	if !s.taken.IsZero() {
		if err := s.meter.note(s.n, time.Since(s.taken)); err != nil {
			return 0, err
		}
	}
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &sourceError{err}
	}
	s.taken, s.n = time.Now(), n
	s.wait.renew()
	return n, err
}

// Close closes the source.
func (s *sending) Close() error { return s.from.Close() }

// wait is the time that a host has, for the next step of a request.
type wait struct {
	limit time.Duration

	mu    sync.Mutex
	timer *time.Timer // guarded by mu
	over  bool        // guarded by mu
}

// newWait calls expired, once, after limit, unless it is renewed or ended before.
func newWait(limit time.Duration, expired func()) *wait {
	return &wait{limit: limit, timer: time.AfterFunc(limit, expired)}
}

// renew begins the wait anew. The transport may read after it has a response.
func (w *wait) renew() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.timer.Reset(w.limit)
	}
}

func (w *wait) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
}
