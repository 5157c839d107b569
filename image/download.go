package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
)

// download fetches the blob of j, and with unpack unpacks it meanwhile. The blob
// does not wait for the layers below: another pull may need it for a layer that
// those in turn wait for. If a host sends something else, or data that cannot be
// unpacked, the next host is tried.
//
// Preconditions: the caller leads the blob's flight.
func (p *puller) download(ctx context.Context, j *job, unpack bool) error {
	var tries registry.Attempts
	var failed []error
	for {
		d, err := p.downloadFrom(ctx, j, unpack, &tries)
		if err == nil || errors.Is(err, layer.ErrNeedsMemory) || ctx.Err() != nil {
			return err
		}
		failed = append(failed, err)
		if d == nil || !d.again(err, &tries) {
			return joined(failed)
		}
		p.discard(j)
	}
}

// joined is the last of several errors, with the text of those before it.
func joined(errs []error) error {
	last := errs[len(errs)-1]
	for _, err := range errs[:len(errs)-1] {
		last = fmt.Errorf("%w; previously: %s", last, err)
	}
	return last
}

// downloadFrom fetches the rest of the blob of j from the first host that tries
// has not given up. After an error it returns the download that failed, if one
// began; its bytes are kept unless they are known to be wrong.
func (p *puller) downloadFrom(ctx context.Context, j *job, unpack bool, tries *registry.Attempts) (*download, error) {
	s := p.s
	w, err := s.blobs.Resume(j.desc)
	if err != nil {
		return nil, err
	}
	defer w.Discard()

	j.got.Store(0)
	d := &download{w: w, meter: p.meter, got: &j.got}
	err = p.unpack(ctx, j, func(ctx context.Context) (io.ReadCloser, error) {
		if err := d.open(ctx, p.from, j, tries); err != nil {
			return nil, err
		}
		return d, nil
	}, unpack, false)
	if err != nil {
		if ctx.Err() != nil || d.broken != nil || errors.Is(err, layer.ErrNeedsMemory) {
			w.Keep()
		}
		return d, err
	}

	if err := w.Finish(); err != nil {
		return d, err
	}
	return nil, s.withFailpoints("publish blob", w.Publish)
}

// download is a blob that is stored while it is read: first what an earlier
// download has left of it, then the rest as the registry sends it.
type download struct {
	w    *store.Writer
	body blobStream // the rest; nil if there is none, or before it is open
	// broken is the error that ended the registry's response early.
	broken error
	meter  Meter // nil for none
	got    *atomic.Int64
}

// open requests the rest of the blob. It does so before the local part is read:
// an origin may send the whole blob instead, and then that part is discarded.
func (d *download) open(ctx context.Context, from origin, j *job, tries *registry.Attempts) error {
	if d.w.Kept() > 0 && d.w.Kept() == j.desc.Size {
		return nil
	}
	body, err := from.Blob(ctx, j.desc, d.w.Kept(), tries)
	if err != nil {
		d.broken = err
		return err
	}

	d.body = body
	if body.Start() != d.w.Kept() {
		err = d.w.Restart()
	}
	if err != nil {
		return errors.Join(err, body.Close())
	}

	return nil
}

// again reports whether to retry after err, and chooses the host. If an earlier
// download had left a part, that part is suspected first, since it may be torn by
// a power cut or come from another host; the same host is tried without it.
func (d *download) again(err error, tries *registry.Attempts) bool {
	var errno syscall.Errno
	switch {
	case noRoom(err):
		return false
	case d.broken == nil && d.w.Kept() > 0:
		return true
	case d.broken == nil && errors.As(err, &errno): // a local error is not the host's fault
		return false
	}
	sent, ok := d.body.(*registry.Blob)
	return ok && tries.Blame(sent)
}

// Read reads the next bytes of the blob.
func (d *download) Read(p []byte) (int, error) {
	n, err := d.w.ReadKept(p)
	d.got.Add(int64(n))
	if !errors.Is(err, io.EOF) || d.body == nil {
		return n, err
	}

	n, err = d.body.Read(p)
	d.got.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		d.broken = err
	}
	if d.meter != nil {
		d.meter.Downloaded(n)
	}
	if _, werr := d.w.Write(p[:n]); werr != nil {
		return 0, werr
	}
	return n, err
}

// Close closes the registry's response.
func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	return d.body.Close()
}

// noRoom reports whether an error says that the disk is full.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
