package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
)

// download fetches the blob of j, unpacking it on the way if that is wanted.
// The blob does not wait for the layers below: others may need it for a layer
// that these in turn wait for. What is not the blob, or cannot be unpacked, is
// fetched from the next host that may have it.
//
// Preconditions: the caller leads the blob's flight.
func (p *puller) download(ctx context.Context, j *job, unpack bool) error {
	var tries registry.Attempts
	var failed []error
	for {
		d, err := p.downloadFrom(ctx, j, unpack, &tries)
		if err == nil || errors.Is(err, layer.ErrMuch) || ctx.Err() != nil {
			return err
		}
		failed = append(failed, err)
		if d == nil || !d.again(err, &tries) {
			return joined(failed)
		}
		p.discard(j)
	}
}

// joined is the last of some errors, with the text of those before it.
func joined(errs []error) error {
	last := errs[len(errs)-1]
	for _, err := range errs[:len(errs)-1] {
		last = fmt.Errorf("%w; before that: %s", last, err)
	}
	return last
}

// downloadFrom fetches what is not here of the blob of j, from the first host
// that tries has not given up. After an error, the download is the one that
// failed, if it began; its bytes are kept unless something is wrong with them.
func (p *puller) downloadFrom(ctx context.Context, j *job, unpack bool, tries *registry.Attempts) (*download, error) {
	s := p.s
	w, err := s.blobs.Resume(j.desc)
	if err != nil {
		return nil, err
	}
	defer w.Discard()

	d := &download{w: w}
	err = p.unpack(ctx, j, func(ctx context.Context) (io.ReadCloser, error) {
		if err := d.open(ctx, p.repo, j, tries); err != nil {
			return nil, err
		}
		return d, nil
	}, unpack, false)
	if err != nil {
		if ctx.Err() != nil || d.broken != nil || errors.Is(err, layer.ErrMuch) {
			w.Keep()
		}
		return d, err
	}

	if err := w.Finish(); err != nil {
		return d, err
	}
	return nil, s.step("publish blob", w.Publish)
}

// download is a blob that is kept while it is read: first what an earlier
// download has left of it, then the rest as the registry sends it.
type download struct {
	w    *store.Writer
	body *registry.Blob // the rest; nil if there is none, or before it is open
	// broken is why the registry's answer did not come to its end.
	broken error
}

// open asks for what is not here. It does so before that is read which is, so
// that a registry that sends all of the blob is taken at its word.
func (d *download) open(ctx context.Context, repo *registry.Repository, j *job, tries *registry.Attempts) error {
	if d.w.Kept() > 0 && d.w.Kept() == j.desc.Size {
		return nil
	}
	body, err := repo.Blob(ctx, j.desc, d.w.Kept(), tries)
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

// again reports whether to try once more after err, and whom to ask then. What
// was kept of the blob goes first: after a power cut it may be torn, and it may
// have come from a host that does not keep its word.
func (d *download) again(err error, tries *registry.Attempts) bool {
	var errno syscall.Errno
	switch {
	case noRoom(err):
		return false
	case d.broken == nil && d.w.Kept() > 0:
		return true
	case d.broken == nil && errors.As(err, &errno): // an error of this machine is not the host's
		return false
	}
	return d.body != nil && tries.Blame(d.body)
}

// Read reads on.
func (d *download) Read(p []byte) (int, error) {
	n, err := d.w.ReadKept(p)
	if !errors.Is(err, io.EOF) || d.body == nil {
		return n, err
	}
	n, err = d.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		d.broken = err
	}
	if _, werr := d.w.Write(p[:n]); werr != nil {
		return 0, werr
	}
	return n, err
}

// Close ends the download.
func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	return d.body.Close()
}

// noRoom reports whether the disk is full.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
