package image

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/registry"
	"crisp/image/store"
	"crisp/runtime/span"
)

// Pushed is what was pushed.
type Pushed struct {
	// Name is the image's name by digest, under which other nodes can pull it.
	Name string `json:"name"`
	// Sent are the bytes of blobs that the registry did not have.
	Sent int64 `json:"sent"`
}

// Push sends the image of a name to the registry that the name says, under that name:
// what of it the registry does not have, and its manifest last. An image that was pulled
// by an index of several platforms is sent with that index, so that its digest stays the
// same; the registry must then have the other images.
func (s *Service) Push(ctx context.Context, name string, auth *Auth) (Pushed, error) {
	var out Pushed
	err := s.pushing(ctx, name, auth, func(ctx context.Context, ref registry.Reference, to *registry.Pusher) error {
		im, err := s.take(ref.String())
		if err != nil {
			return err
		}
		defer s.giveBack(im)
		p := &push{s: s, im: im, to: to}
		if err := p.run(ctx, ref); err != nil {
			return err
		}
		out = Pushed{ref.Name() + "@" + p.target.Root.Digest.String(), p.sent}
		return nil
	})
	return out, err
}

// TryPush finds out whether the registry of a name would take an image of that name, which
// need not exist. It leaves nothing there.
func (s *Service) TryPush(ctx context.Context, name string, auth *Auth) error {
	return s.pushing(ctx, name, auth, func(ctx context.Context, _ registry.Reference, to *registry.Pusher) error {
		return to.Try(ctx)
	})
}

// pushing calls do with a connection to the registry of a name. Close ends it.
func (s *Service) pushing(ctx context.Context, name string, auth *Auth, do func(context.Context, registry.Reference, *registry.Pusher) error) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return fmt.Errorf("push image: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	if !s.pulls.enter(&s.work) {
		return ErrClosed
	}
	defer s.work.Done()

	err = span.Do(ctx, "push", func(ctx context.Context) error {
		to, err := s.client.Load().Pusher(ref, auth)
		if err != nil {
			return err
		}
		defer to.Close()
		return do(ctx, ref, to)
	})
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("push image %q: %w", ref, classify(err))
	}
	return nil
}

// push is one push.
type push struct {
	s      *Service
	im     *stored
	to     *registry.Pusher
	target store.Target
	sent   int64
}

// run sends the image: nothing before that which it needs.
func (p *push) run(ctx context.Context, ref registry.Reference) error {
	if err := p.choose(ref); err != nil {
		return err
	}
	if err := p.checkIndex(ctx); err != nil {
		return err
	}
	m, err := p.s.loadManifest(p.target.Manifest, p.im.record.ID)
	if err != nil {
		return err
	}

	done := map[digest.Digest]bool{}
	for _, d := range append(m.Layers, m.Config) {
		if done[d.Digest] {
			continue
		}
		done[d.Digest] = true
		sent, err := p.to.Blob(ctx, d.oci(), p.reader(ctx, d.oci()))
		if err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
		if sent {
			p.sent += d.Size
		}
	}
	return p.documents(ctx)
}

// choose finds what the name stands for.
func (p *push) choose(ref registry.Reference) error {
	root, ok := p.im.record.Tags[ref.String()]
	if !ok {
		_, text, _ := strings.Cut(ref.String(), "@")
		root = digest.Digest(text)
	}
	for _, t := range p.im.record.Targets {
		if t.Root.Digest == root {
			p.target = t
			return nil
		}
	}
	return fmt.Errorf("%w: its manifest %s is not here", ErrNotFound, root)
}

// maxAsked bounds how many images of an index the registry is asked for. Whether it has
// the others it says when it gets the index.
const maxAsked = 100

// checkIndex checks that the registry has the images for other platforms, which this node
// does not have: it would refuse the index after everything else.
func (p *push) checkIndex(ctx context.Context) error {
	root := p.target.Root
	if root.Digest == p.target.Manifest.Digest {
		return nil
	}
	doc := &spool{dir: p.s.blobs.TempDir()}
	defer doc.close()
	if err := p.s.readLocal(doc, root); err != nil {
		return fmt.Errorf("read index %s: %w", root.Digest, err)
	}
	var index *document
	err := p.s.decoded(ctx, doc, func(data []byte) (err error) {
		index, err = parse(data, root.MediaType)
		return err
	})
	if err != nil {
		return err
	}

	for _, c := range index.children[:min(len(index.children), maxAsked)] {
		if c.Digest == p.target.Manifest.Digest {
			continue
		}
		if err := c.Digest.Validate(); err != nil { // nothing has looked at it before
			return fmt.Errorf("%w: index %s lists digest %q: %w", ErrInvalid, root.Digest, truncate(c.Digest.String()), err)
		}
		has, err := p.to.HasManifest(ctx, c.Digest)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", c.Digest, err)
		}
		if !has {
			what := ""
			if c.Platform != nil {
				what = " for " + truncate(c.Platform.String())
			}
			return fmt.Errorf("%w: neither the registry nor this node has image %s, which index %s lists%s", ErrNotFound, c.Digest, root.Digest, what)
		}
	}
	return nil
}

// documents sends the manifest, and the index that it was pulled by.
func (p *push) documents(ctx context.Context) error {
	root, manifest := p.target.Root, p.target.Manifest
	isIndex := root.Digest != manifest.Digest
	if err := p.to.Manifest(ctx, manifest, isIndex, p.reader(ctx, manifest)); err != nil {
		return fmt.Errorf("manifest %s: %w", manifest.Digest, err)
	}
	if !isIndex {
		return nil
	}
	if err := p.to.Manifest(ctx, root, false, p.reader(ctx, root)); err != nil {
		return fmt.Errorf("index %s: %w", root.Digest, err)
	}
	return nil
}

// reader opens a blob, which is verified as it is read.
func (p *push) reader(ctx context.Context, desc ocispec.Descriptor) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		r, err := p.s.blobs.Reader(desc)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{&interruptible{ctx, r}, r}, nil
	}
}
