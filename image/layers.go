package image

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"crisp/image/layer"
	"crisp/image/store"
	"crisp/runtime/span"
)

const (
	// maxRatio and ratioFree bound the unpacked size of a layer: this many times
	// its compressed size, plus an allowance in bytes.
	maxRatio  = 200
	ratioFree = 4 << 30
)

// job is one layer of a pull.
type job struct {
	desc                ocispec.Descriptor
	diff, chain, parent digest.Digest

	// ready is closed when the layer is present or staged.
	ready chan struct{}
	// stage is the layer as unpacked by this pull, which then leads its
	// flight; nil if the layer was present.
	stage *layer.Stage
	leads bool
	// got is how many bytes of the blob the present download has.
	got atomic.Int64
}

// fetchLayers fetches and unpacks all missing layers of the image, several at a
// time, and publishes them from the lowest up.
func (p *puller) fetchLayers(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.dispatch(ctx, group) })
	group.Go(func() error { return p.publish(ctx) })
	err := group.Wait()
	for _, j := range p.jobs {
		p.s.janitor.add(j.stage.Discard())
		if j.leads {
			p.s.layerFlights.land(j.chain)
		}
	}
	return err
}

// dispatch starts the jobs in order, a bounded number at a time. The order
// prevents deadlocks between pulls: a job that waits for another pull's layer
// never takes the slot of a layer below it.
func (p *puller) dispatch(ctx context.Context, group *errgroup.Group) error {
	slots := make(chan struct{}, p.s.choices.Load().MaxConcurrentDownloads)
	for _, j := range p.jobs {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		group.Go(func() error {
			defer func() { <-slots }()
			ctx, end := span.Start(ctx, "fetch layer", "digest", j.desc.Digest.String(), "size", strconv.FormatInt(j.desc.Size, 10))
			err := p.fetch(ctx, j)
			end(err)
			if err != nil {
				return err
			}

			close(j.ready)
			return nil
		})
	}

	return nil
}

// fetch makes sure that the layer of j is present or staged, and its blob present.
func (p *puller) fetch(ctx context.Context, j *job) error {
	s := p.s
	var err error
	j.leads, err = s.layerFlights.lead(ctx, j.chain, func() bool { _, ok := s.layers.Get(j.chain); return ok })
	if err != nil {
		return err
	}

	for {
		leadsBlob, err := s.blobFlights.lead(ctx, j.desc.Digest, func() bool { return s.blobs.Has(j.desc) })
		if err != nil {
			return err
		}

		if !leadsBlob && !j.leads {
			return nil
		}
		again, err := p.fetchBlob(ctx, j, leadsBlob)

		if leadsBlob {
			s.blobFlights.land(j.desc.Digest)
		}
		if !again {
			return err
		}
	}
}

// fetchBlob stages the layer of j from its blob, on disk or from the registry,
// which may only be asked by the leader of the blob's flight. With again, the
// blob on disk was corrupt and has been removed: the caller starts over.
//
// A registry may send as slowly as it likes, so only a bounded number of layers
// is unpacked while being downloaded: see package budget. The others, and those
// that need much memory, are downloaded to the disk and unpacked from there.
func (p *puller) fetchBlob(ctx context.Context, j *job, leads bool) (again bool, err error) {
	s := p.s
	if !leads || s.blobs.Doubtful(j.desc.Digest) {
		return p.fromDisk(ctx, j)
	}

	release, ok := s.budget.TryStream()
	if ok {
		err = span.Do(ctx, "download and unpack", func(ctx context.Context) error { return p.download(ctx, j, j.leads) })
		release()
		if !errors.Is(err, layer.ErrNeedsMemory) {
			return false, err
		}
		p.discard(j)
	}

	err = span.Do(ctx, "download", func(ctx context.Context) error { return p.download(ctx, j, false) })
	if err != nil || !j.leads {
		return false, err
	}
	return p.fromDisk(ctx, j)
}

// discard drops a stage that failed.
func (p *puller) discard(j *job) {
	p.s.janitor.add(j.stage.Discard())
	j.stage = nil
}

// fromDisk stages the layer of j from its blob on disk. With again, the blob was
// corrupt and has been removed.
func (p *puller) fromDisk(ctx context.Context, j *job) (again bool, err error) {
	s := p.s
	open := func(context.Context) (io.ReadCloser, error) { return s.blobs.Reader(j.desc) }
	ctx, end := span.Start(ctx, "unpack")
	defer func() { end(err) }()
	err = p.unpackWithin(ctx, j, open, false)
	if errors.Is(err, layer.ErrNeedsMemory) {
		p.discard(j)
		err = p.unpackWithin(ctx, j, open, true)
	}
	if err == nil {
		s.blobs.Doubt(j.desc.Digest, false)
		return false, nil
	}

	if ctx.Err() != nil {
		return false, err
	}
	if verr := s.blobs.Verify(ctx, j.desc); verr == nil || ctx.Err() != nil {
		return false, err
	}

	// The blob was verified when it was written: the disk has corrupted it.
	corrupt, err := s.blobs.Detach(j.desc.Digest)
	s.janitor.add(corrupt)
	p.discard(j)
	return err == nil, err
}

// unpackWithin is unpack for a blob on disk, within the memory budget of a small
// or a large layer.
func (p *puller) unpackWithin(ctx context.Context, j *job, open layer.Source, large bool) error {
	release, err := p.s.budget.Unpack(ctx, large)
	if err != nil {
		return err
	}
	defer release()
	return p.unpack(ctx, j, open, j.leads, large)
}

// unpack stages the layer of j, or only reads the source to its end.
func (p *puller) unpack(ctx context.Context, j *job, open layer.Source, stage, large bool) error {
	if !stage {
		src, err := open(ctx)
		if err != nil {
			return err
		}
		return errors.Join(store.ReadToEnd(ctx, src), src.Close())
	}
	return p.stage(ctx, j, open, large)
}

// stage unpacks the layer of j.
func (p *puller) stage(ctx context.Context, j *job, open layer.Source, large bool) error {
	stage, err := p.s.layers.Stage(j.chain, j.diff, j.parent)
	j.stage = stage
	if err != nil {
		return err
	}

	limit := unpackedLimit(j.desc.Size)
	if m := p.s.opts.MaxUnpackedLayer; m > 0 {
		limit = min(limit, m)
	}
	return p.s.withFailpoints("unpack", func() error { return stage.Unpack(ctx, open, layer.Limits{Bytes: limit, LargeMemory: large}) })
}

// unpackedLimit bounds the unpacked size of a layer of the given compressed
// size, both in bytes.
func unpackedLimit(size int64) int64 {
	const huge = 1 << 50 // keeps the product from overflowing
	return ratioFree + maxRatio*min(size, huge)
}

// publish publishes the layers in order, each as soon as it is unpacked.
func (p *puller) publish(ctx context.Context) error {
	for _, j := range p.jobs {
		select {
		case <-j.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}

		if j.stage == nil {
			continue
		}
		err := span.Do(ctx, "publish layer", func(ctx context.Context) error {
			return p.s.withFailpoints("publish layer", func() error { return j.stage.Publish(ctx) })
		})
		if err != nil {
			return err
		}

		j.leads = false
		p.s.layerFlights.land(j.chain)
	}
	return nil
}
