package image

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
	"crisp/runtime/span"
)

// Pull fetches the image that ref names and returns it once it is complete,
// whichever process dies from then on. It is synced a little later: if the power
// fails before, the image is gone, and the next pull fetches what was torn. The
// registry is asked every time, so that it decides who may read the image; what
// is present already is not fetched again.
//
// Callers that want the same image with the same credentials share one pull,
// which is cancelled only when all of them have given up.
func (s *Service) Pull(ctx context.Context, ref string, auth *Auth) (Image, error) {
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return Image{}, err
	}

	key := pullKey{ref: parsed.String()}
	if auth != nil {
		key.auth = *auth
	}

	im, err := s.pulls.do(ctx, key, func(op *sharedPull) {
		var opCtx context.Context
		opCtx, op.cancel = context.WithCancelCause(span.Follow(s.ctx, ctx))
		op.progress = &progress{ref: parsed.String(), began: time.Now()}
		s.work.Go(func() {
			defer op.cancel(nil)
			opCtx, end := span.Start(opCtx, "pull", "image", parsed.String())
			im, err := s.pull(opCtx, parsed, auth, op.progress)
			end(err)
			if s.opts.Meter != nil {
				s.opts.Meter.Pulled(time.Since(op.progress.began), err)
			}
			s.pulls.finish(key, op, im, err)
		})
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}

	return im, nil
}

func (s *Service) pull(ctx context.Context, ref registry.Reference, auth *Auth, watched *progress) (Image, error) {
	repo, err := s.client.Load().Repository(ref, auth)
	if err != nil {
		return Image{}, err
	}
	defer repo.Close()
	if watched != nil {
		repo.Observe(watched.ask)
	}
	return s.fetch(ctx, &puller{s: s, from: remote{repo}, ref: ref, progress: watched, meter: s.opts.Meter})
}

// fetch fetches an image from its origin.
func (s *Service) fetch(ctx context.Context, p *puller) (Image, error) {
	im, err := p.run(ctx)
	p.release()
	s.wantSync()

	if noRoom(err) {
		s.dropParts()
	}
	if err != nil {
		s.noteParts()
	}
	if ctx.Err() != nil && err != nil {
		return Image{}, context.Cause(ctx)
	}

	return im, classify(err)
}

// puller is one pull in progress.
type puller struct {
	s    *Service
	from origin
	ref  registry.Reference
	// pin means that kubelet must not remove the image.
	pin bool

	docs   []*spool // the root, perhaps an index; manifests; the configuration
	target store.Target
	config ocispec.Image
	jobs   []*job
	// fetched means that something was missing and has been fetched.
	fetched bool
	pinned  []digest.Digest
	// progress is nil where nobody watches, meter where nobody measures.
	progress *progress
	meter    Meter
}

func (p *puller) run(ctx context.Context) (Image, error) {
	if err := span.Do(ctx, "fetch documents", p.documents); err != nil {
		return Image{}, err
	}
	if p.isPresent() {
		return p.record()
	}

	p.fetched = true
	if err := span.Do(ctx, "fetch layers", p.fetchLayers); err != nil {
		return Image{}, err
	}
	if err := span.Do(ctx, "store documents", p.finish); err != nil {
		return Image{}, err
	}
	return p.record()
}

// finish stores what the image has besides its layers.
func (p *puller) finish(ctx context.Context) error {
	targets := p.s.stageTargets(ctx, p.top())
	if err := p.storeDocuments(); err != nil {
		p.s.janitor.add(targets)
		return err
	}
	return p.s.publishTargets(ctx, p.top(), targets)
}

// top returns the chain ID of the image's topmost layer, "" if it has none.
func (p *puller) top() digest.Digest {
	if len(p.jobs) == 0 {
		return ""
	}
	return p.jobs[len(p.jobs)-1].chain
}

// documents fetches the documents of the image: the manifest for this platform,
// indexes that lead to it, and the configuration.
func (p *puller) documents(ctx context.Context) error {
	parsed, err := p.fetchManifest(ctx)
	if err != nil {
		return err
	}

	p.target.Root, p.target.Manifest = p.docs[0].desc, p.docs[len(p.docs)-1].desc
	if err := parsed.checkImage(); err != nil {
		return err
	}

	config, err := p.fetchDocument(&parsed.config, func(doc *spool) error {
		doc.desc = parsed.config
		return p.from.Config(ctx, parsed.config, doc)
	})
	if err != nil {
		return err
	}

	err = p.s.decoded(ctx, config, func(data []byte) error {
		var err error
		p.config, err = parseConfig(data, len(parsed.layers), p.s.rank)
		return err
	})
	if err != nil {
		return err
	}

	p.plan(parsed)
	return nil
}

// fetchManifest fetches the document that the reference names, and follows
// indexes to the manifest for this platform.
func (p *puller) fetchManifest(ctx context.Context) (*document, error) {
	parsed, err := p.fetchParsed(ctx, nil, func(doc *spool) error {
		var err error
		doc.desc, err = p.from.Manifest(ctx, doc)
		return err
	})

	for depth := 0; err == nil && parsed.isIndex; depth++ {
		if depth == maxIndexDepth {
			return nil, fmt.Errorf("%w: indexes nested more than %d deep", ErrInvalid, maxIndexDepth)
		}
		var desc ocispec.Descriptor
		if desc, err = parsed.choose(p.s.rank); err == nil {
			parsed, err = p.child(ctx, desc)
		}
	}

	return parsed, err
}

// fetchDocument adds a document: the local one that desc describes, if it is
// present, else what fetch brings.
func (p *puller) fetchDocument(desc *ocispec.Descriptor, fetch func(*spool) error) (*spool, error) {
	doc := &spool{dir: p.s.blobs.TempDir()}
	p.docs = append(p.docs, doc)
	if desc == nil || p.s.readLocal(doc, *desc) != nil {
		if err := fetch(doc); err != nil {
			return nil, err
		}
	}
	return doc, nil
}

// readLocal reads a document from the store. After an error doc is empty.
func (s *Service) readLocal(doc *spool, desc ocispec.Descriptor) error {
	r, err := s.blobs.Reader(desc)
	if err != nil {
		return err
	}
	defer r.Close()
	doc.desc = desc
	if _, err = io.Copy(doc, r); err != nil {
		doc.Reset()
	}
	return err
}

// fetchParsed is fetchDocument for a manifest or an index, which it parses.
func (p *puller) fetchParsed(ctx context.Context, desc *ocispec.Descriptor, fetch func(*spool) error) (*document, error) {
	doc, err := p.fetchDocument(desc, fetch)
	if err != nil {
		return nil, err
	}

	var parsed *document
	err = p.s.decoded(ctx, doc, func(data []byte) error {
		var err error
		parsed, err = parse(data, doc.desc.MediaType)
		return err
	})
	if err != nil {
		return nil, err
	}

	doc.desc.MediaType = parsed.MediaType
	return parsed, nil
}

// child fetches a manifest, or an index, that an index lists.
func (p *puller) child(ctx context.Context, desc ocispec.Descriptor) (*document, error) {
	return p.fetchParsed(ctx, &desc, func(doc *spool) error {
		var err error
		if doc.desc, err = p.from.ManifestByDigest(ctx, desc.Digest, doc); err != nil {
			return err
		}
		if doc.desc.Size != desc.Size {
			return fmt.Errorf("%w: manifest %s has %d bytes, want %d", ErrInvalid, desc.Digest, doc.desc.Size, desc.Size)
		}
		return nil
	})
}

// plan makes a job of each layer, and pins everything that the image needs.
func (p *puller) plan(m *document) {
	chains := layer.ChainIDs(p.config.RootFS.DiffIDs)
	var parent digest.Digest
	for i, desc := range m.layers {
		p.jobs = append(p.jobs, &job{
			desc: desc, diff: p.config.RootFS.DiffIDs[i], chain: chains[i], parent: parent,
			ready: make(chan struct{}),
		})
		parent = chains[i]
		p.pinned = append(p.pinned, desc.Digest, chains[i])
	}

	p.progress.plan(p.jobs)
	for _, doc := range p.docs {
		p.pinned = append(p.pinned, doc.desc.Digest)
	}

	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.pin(p.pinned)
}

// release closes the documents and unpins what the image needs.
func (p *puller) release() {
	for _, doc := range p.docs {
		doc.close()
	}

	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.unpin(p.pinned)
}

// isPresent reports whether there is nothing to fetch.
func (p *puller) isPresent() bool {
	for _, doc := range p.docs {
		if !p.s.blobs.Has(doc.desc) {
			return false
		}
	}
	for _, j := range p.jobs {
		if _, ok := p.s.layers.Get(j.chain); !ok || !p.s.blobs.Has(j.desc) {
			return false
		}
	}
	return true
}

// storeDocuments stores the documents as blobs.
func (p *puller) storeDocuments() error {
	for _, doc := range p.docs {
		if p.s.blobs.Has(doc.desc) {
			continue
		}
		if err := p.s.withFailpoints("store document", func() error { return p.storeDocument(doc) }); err != nil {
			return err
		}
	}
	return nil
}

func (p *puller) storeDocument(doc *spool) error {
	w, err := p.s.blobs.Create(doc.desc)
	if err != nil {
		return err
	}
	defer w.Discard()
	if _, err := io.Copy(w, doc.reader()); err != nil {
		return err
	}
	if err := w.Finish(); err != nil {
		return err
	}
	return w.Publish()
}

// record adds the image, under its names, to the catalog and to the record on
// disk.
func (p *puller) record() (Image, error) {
	s := p.s
	s.recordMu.Lock()
	defer s.recordMu.Unlock()

	now := s.snapshot.Load()
	id := p.docs[len(p.docs)-1].desc.Digest // of the configuration
	rec := p.newRecord(id, now.byID[id])

	changes := map[digest.Digest]*stored{}
	if old := p.holder(now); old != nil && old.record.ID != id {
		changes[old.record.ID] = s.without(old, p.ref.String())
	}

	changed := p.fetched || len(changes) > 0 || !sameRecord(now.byID[id], rec)
	if changed {
		rec.Unsynced = s.opts.BootID
	}

	im := s.load(rec)
	if im.err != nil && len(rec.Targets) > 1 {
		// A manifest under which the image was pulled before is damaged: it is
		// dropped together with its names.
		changed = true
		im = s.load(p.reduced(rec))
	}
	if im.err != nil {
		return Image{}, im.err
	}

	changes[id] = im
	next := now.with(changes, s.choices.Load().Pinned)
	if changed {
		err := s.withFailpoints("record image", func() error { return s.blobs.SetImages(next.records(), false) })
		if err != nil {
			return Image{}, err
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot.Store(next)
	return next.byID[id].image, nil
}

// newRecord returns the record of the image, with the names and targets of its
// old record, if it has one, and those of this pull.
func (p *puller) newRecord(id digest.Digest, old *stored) store.Image {
	rec := store.Image{ID: id}
	if old != nil {
		rec = old.record.Clone()
	}

	rec.Pinned = rec.Pinned || p.pin
	if !slices.ContainsFunc(rec.Targets, func(t store.Target) bool { return t.Root.Digest == p.target.Root.Digest }) {
		rec.Targets = append(rec.Targets, p.target)
	}
	if !slices.Contains(rec.Digests, p.byDigest()) {
		rec.Digests = append(rec.Digests, p.byDigest())
	}

	if p.ref.Tag == "" {
		return rec
	}
	rec.Tags = maps.Clone(rec.Tags)
	if rec.Tags == nil {
		rec.Tags = map[string]digest.Digest{}
	}
	rec.Tags[p.ref.String()] = p.target.Root.Digest
	return rec
}

// byDigest is the image's name by digest, "docker.io/library/busybox@sha256:...".
func (p *puller) byDigest() string { return p.ref.Name() + "@" + p.target.Root.Digest.String() }

// holder returns the image that has the tag of this pull so far, nil if there is
// none or no tag.
func (p *puller) holder(c *catalog) *stored {
	if p.ref.Tag == "" {
		return nil
	}
	return c.byID[c.byName[p.ref.String()]]
}

// reduced returns a record with nothing but the target of this pull and its
// names.
func (p *puller) reduced(rec store.Image) store.Image {
	tags := maps.Clone(rec.Tags)
	maps.DeleteFunc(tags, func(_ string, root digest.Digest) bool { return root != p.target.Root.Digest })
	return store.Image{
		ID: rec.ID, Tags: tags, Digests: []string{p.byDigest()}, Targets: []store.Target{p.target}, Unsynced: p.s.opts.BootID,
		Pinned: rec.Pinned,
	}
}

// without returns an image without one of its tags.
func (s *Service) without(im *stored, tag string) *stored {
	next := *im
	next.record = im.record.Clone()
	delete(next.record.Tags, tag)
	next.err = cmp.Or(next.err, s.describe(&next))
	return &next
}

func sameRecord(old *stored, rec store.Image) bool {
	if old == nil {
		return false
	}

	sameTarget := func(a, b store.Target) bool {
		return a.Root.Digest == b.Root.Digest && a.Manifest.Digest == b.Manifest.Digest
	}
	return old.record.Pinned == rec.Pinned && maps.Equal(old.record.Tags, rec.Tags) && slices.Equal(old.record.Digests, rec.Digests) &&
		slices.EqualFunc(old.record.Targets, rec.Targets, sameTarget)
}
