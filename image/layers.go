package image

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"crisp/image/layer"
	"crisp/image/store"
)

const (
	// maxRatio and ratioFree bound what a packed layer may turn into: so many
	// times its size, and some for free.
	maxRatio  = 200
	ratioFree = 4 << 30
)

// job is one layer of a pull.
type job struct {
	desc                ocispec.Descriptor
	diff, chain, parent digest.Digest

	// ready closes when the layer is here or staged.
	ready chan struct{}
	// stage is the layer as unpacked by this pull, which then leads its
	// flight; nil if there was nothing to do.
	stage *layer.Stage
	leads bool
}

// fetchLayers makes all layers of the image present. Several are downloaded
// and unpacked at a time; they are published from the lowest up.
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

// dispatch starts the jobs in order, some at a time. The order matters: a job
// that waits for another pull's layer never holds up the layers below it.
func (p *puller) dispatch(ctx context.Context, group *errgroup.Group) error {
	slots := make(chan struct{}, p.s.opts.MaxConcurrentDownloads)
	for _, j := range p.jobs {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		group.Go(func() error {
			defer func() { <-slots }()
			if err := p.fetch(ctx, j); err != nil {
				return err
			}
			close(j.ready)
			return nil
		})
	}

	return nil
}

// fetch makes the layer of j present or staged, and its blob present.
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

// fetchBlob makes the layer of j present or staged from its blob: from the
// disk if it is there, else from the registry, which only who leads the blob's
// flight may ask. Again means that the blob was there and is no good.
//
// A registry may send as slowly as it likes, so a layer is unpacked on the way
// only as long as few are: see package budget. The others, and those that take
// much memory, are downloaded to the disk and unpacked from there.
func (p *puller) fetchBlob(ctx context.Context, j *job, leads bool) (again bool, err error) {
	s := p.s
	if !leads || s.blobs.Doubtful(j.desc.Digest) {
		return p.fromDisk(ctx, j)
	}

	release, ok := s.budget.TryStream()
	if ok {
		err = p.download(ctx, j, j.leads)
		release()
		if !errors.Is(err, layer.ErrMuch) {
			return false, err
		}
		p.discard(j)
	}
	if err := p.download(ctx, j, false); err != nil || !j.leads {
		return false, err
	}

	return p.fromDisk(ctx, j)
}

// discard drops a stage that came to nothing.
func (p *puller) discard(j *job) {
	p.s.janitor.add(j.stage.Discard())
	j.stage = nil
}

// fromDisk makes the layer of j staged from its blob, which is here. Again
// means that it is no good.
func (p *puller) fromDisk(ctx context.Context, j *job) (again bool, err error) {
	s := p.s
	open := func(context.Context) (io.ReadCloser, error) { return s.blobs.Reader(j.desc) }
	err = p.fromDiskTaking(ctx, j, open, false)
	if errors.Is(err, layer.ErrMuch) {
		p.discard(j)
		err = p.fromDiskTaking(ctx, j, open, true)
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

	// The disk has spoiled it.
	spoilt, err := s.blobs.Detach(j.desc.Digest)
	s.janitor.add(spoilt)
	p.discard(j)
	return err == nil, err
}

func (p *puller) fromDiskTaking(ctx context.Context, j *job, open layer.Source, much bool) error {
	release, err := p.s.budget.Unpack(ctx, much)
	if err != nil {
		return err
	}
	defer release()
	return p.unpack(ctx, j, open, j.leads, much)
}

// unpack stages the layer of j, or only reads the source to its end.
func (p *puller) unpack(ctx context.Context, j *job, open layer.Source, stage, much bool) error {
	if !stage {
		src, err := open(ctx)
		if err != nil {
			return err
		}
		return errors.Join(store.ReadToEnd(ctx, src), src.Close())
	}
	return p.stage(ctx, j, open, much)
}

// stage unpacks the layer of j.
func (p *puller) stage(ctx context.Context, j *job, open layer.Source, much bool) error {
	stage, err := p.s.layers.Stage(j.chain, j.diff, j.parent)
	j.stage = stage
	if err != nil {
		return err
	}
	limit := int64(ratioFree) + maxRatio*min(j.desc.Size, 1<<50)
	if m := p.s.opts.MaxUnpackedLayer; m > 0 {
		limit = min(limit, m)
	}
	return p.s.step("unpack", func() error { return stage.Unpack(ctx, open, layer.Limits{Bytes: limit, Much: much}) })
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
		if err := p.s.step("publish layer", func() error { return j.stage.Publish(ctx) }); err != nil {
			return err
		}

		j.leads = false
		p.s.layerFlights.land(j.chain)
	}
	return nil
}
