package image

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
)

// Pull fetches the image that ref names and returns it once it is complete,
// whichever process dies from then on. The bytes reach the disk a little later:
// if a power cut comes before, the image is not here any more, and the next
// pull fetches what was torn. The registry is asked every time, so that its say on who may
// read the image holds; what is here already is not fetched again.
//
// Callers that want the same image with the same credentials share one pull,
// which ends early only when all of them have given up.
func (s *Service) Pull(ctx context.Context, ref string, auth *Auth) (Image, error) {
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return Image{}, err
	}

	key := pullKey{ref: parsed.String()}
	if auth != nil {
		key.auth = *auth
	}

	im, err := s.pulls.do(ctx, key, func(op *pull) {
		var opCtx context.Context
		opCtx, op.cancel = context.WithCancelCause(s.ctx)
		s.work.Go(func() {
			defer op.cancel(nil)
			im, err := s.pull(opCtx, parsed, auth)
			s.pulls.finish(key, op, im, err)
		})
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}

	return im, nil
}

func (s *Service) pull(ctx context.Context, ref registry.Reference, auth *Auth) (Image, error) {
	repo, err := s.client.Repository(ref, auth)
	if err != nil {
		return Image{}, err
	}
	defer repo.Close()

	p := &puller{s: s, repo: repo, ref: ref}
	im, err := p.run(ctx)
	p.end()
	s.wantSync()

	if noRoom(err) {
		s.dropParts()
	}
	if err != nil {
		s.partsLeft()
	}
	if ctx.Err() != nil && err != nil {
		return Image{}, context.Cause(ctx)
	}

	return im, classify(err)
}

// puller is one pull under way.
type puller struct {
	s    *Service
	repo *registry.Repository
	ref  registry.Reference

	docs   []*spool // root, manifests between, configuration
	target store.Target
	config ocispec.Image
	jobs   []*job
	// fetched means that not everything was here.
	fetched bool
	pinned  []digest.Digest
}

func (p *puller) run(ctx context.Context) (Image, error) {
	if err := p.documents(ctx); err != nil {
		return Image{}, err
	}
	if p.isHere() {
		return p.record()
	}

	p.fetched = true
	if err := p.fetchLayers(ctx); err != nil {
		return Image{}, err
	}

	targets := p.s.stageTargets(ctx, p.top())
	if err := p.storeDocuments(); err != nil {
		p.s.janitor.add(targets)
		return Image{}, err
	}

	if err := p.s.publishTargets(ctx, p.top(), targets); err != nil {
		return Image{}, err
	}
	return p.record()
}

// top is the chain ID of the image's uppermost layer, "" if it has none.
func (p *puller) top() digest.Digest {
	if len(p.jobs) == 0 {
		return ""
	}
	return p.jobs[len(p.jobs)-1].chain
}

// documents fetches what describes the image: an index perhaps, the manifest
// for this platform and the configuration.
func (p *puller) documents(ctx context.Context) error {
	parsed, err := p.take(ctx, nil, func(doc *spool) error {
		var err error
		doc.desc, err = p.repo.Manifest(ctx, doc)
		return err
	})
	if err != nil {
		return err
	}

	p.target.Root = p.docs[0].desc
	for depth := 0; parsed.isIndex; depth++ {
		if depth == maxIndexDepth {
			return fmt.Errorf("%w: indexes in indexes", ErrInvalid)
		}
		desc, err := parsed.choose(p.s.rank)
		if err != nil {
			return err
		}

		if parsed, err = p.child(ctx, desc); err != nil {
			return err
		}
	}

	p.target.Manifest = p.docs[len(p.docs)-1].desc
	if err := parsed.checkImage(); err != nil {
		return err
	}

	config, err := p.fetchDocument(&parsed.config, func(doc *spool) error {
		doc.desc = parsed.config
		return p.repo.Config(ctx, parsed.config, doc)
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

// fetchDocument notes a document: that which desc describes if it is here
// already, else what fetch brings.
func (p *puller) fetchDocument(desc *ocispec.Descriptor, fetch func(*spool) error) (*spool, error) {
	doc := &spool{dir: p.s.blobs.TempDir()}
	p.docs = append(p.docs, doc)
	if desc == nil || p.s.local(doc, *desc) != nil {
		if err := fetch(doc); err != nil {
			return nil, err
		}
	}
	return doc, nil
}

// local brings a document that is here already. After an error there is
// nothing of it in doc.
func (s *Service) local(doc *spool, desc ocispec.Descriptor) error {
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

// take notes a document and says what it is.
func (p *puller) take(ctx context.Context, desc *ocispec.Descriptor, fetch func(*spool) error) (*document, error) {
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

// child fetches a manifest that an index names.
func (p *puller) child(ctx context.Context, desc ocispec.Descriptor) (*document, error) {
	return p.take(ctx, &desc, func(doc *spool) error {
		var err error
		if doc.desc, err = p.repo.ManifestByDigest(ctx, desc.Digest, doc); err != nil {
			return err
		}
		if doc.desc.Size != desc.Size {
			return fmt.Errorf("%w: manifest %s has %d bytes, not %d", ErrInvalid, desc.Digest, doc.desc.Size, desc.Size)
		}
		return nil
	})
}

// plan makes a job of each layer and keeps the collector away from all that
// the image needs.
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

	for _, doc := range p.docs {
		p.pinned = append(p.pinned, doc.desc.Digest)
	}

	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, d := range p.pinned {
		p.s.pins[d]++
	}
}

// end lets go of what the pull has held.
func (p *puller) end() {
	for _, doc := range p.docs {
		doc.close()
	}
	p.unpin()
}

func (p *puller) unpin() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, d := range p.pinned {
		if p.s.pins[d]--; p.s.pins[d] == 0 {
			delete(p.s.pins, d)
		}
	}
}

// isHere reports whether there is nothing to fetch.
func (p *puller) isHere() bool {
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

// storeDocuments keeps the documents as blobs.
func (p *puller) storeDocuments() error {
	for _, doc := range p.docs {
		if p.s.blobs.Has(doc.desc) {
			continue
		}
		if err := p.s.step("store document", func() error { return p.storeDocument(doc) }); err != nil {
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

// record gives the image its names. A tag that another image had moves here.
func (p *puller) record() (Image, error) {
	s := p.s
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	now := s.snapshot.Load()
	id := p.docs[len(p.docs)-1].desc.Digest
	rec := store.Image{ID: id}

	if old := now.entries[id]; old != nil {
		rec = old.record.Clone()
	}
	if !slices.ContainsFunc(rec.Targets, func(t store.Target) bool { return t.Root.Digest == p.target.Root.Digest }) {
		rec.Targets = append(rec.Targets, p.target)
	}

	byDigest := p.ref.Name() + "@" + p.target.Root.Digest.String()
	if !slices.Contains(rec.Digests, byDigest) {
		rec.Digests = append(rec.Digests, byDigest)
	}

	changes := map[digest.Digest]*entry{}
	if p.ref.Tag != "" {
		tag := p.ref.String()
		if holder, ok := now.byName[tag]; ok && holder != id {
			changes[holder] = s.without(now.entries[holder], tag)
		}

		rec.Tags = maps.Clone(rec.Tags)
		if rec.Tags == nil {
			rec.Tags = map[string]digest.Digest{}
		}
		rec.Tags[tag] = p.target.Root.Digest
	}

	changed := p.fetched || len(changes) > 0 || !sameRecord(now.entries[id], rec)
	if changed {
		rec.Unsynced = s.opts.BootID
	}

	e := s.load(rec)
	if e.err != nil && len(rec.Targets) > 1 {
		// Another wrapping of the image is damaged: it goes with its names.
		changed = true
		e = s.load(only(rec, p.target, byDigest, s.opts.BootID))
	}
	if e.err != nil {
		return Image{}, e.err
	}

	changes[id] = e
	next := now.with(changes, s.opts.Pinned)
	if changed {
		err := s.step("record image", func() error { return s.blobs.SetImages(next.records(), false) })
		if err != nil {
			return Image{}, err
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot.Store(next)
	return next.entries[id].image, nil
}

// only reduces a record to one target and its names.
func only(rec store.Image, t store.Target, byDigest, boot string) store.Image {
	tags := maps.Clone(rec.Tags)
	maps.DeleteFunc(tags, func(_ string, root digest.Digest) bool { return root != t.Root.Digest })
	return store.Image{ID: rec.ID, Tags: tags, Digests: []string{byDigest}, Targets: []store.Target{t}, Unsynced: boot}
}

// without returns the image without one of its tags.
func (s *Service) without(e *entry, tag string) *entry {
	rec := e.record.Clone()
	delete(rec.Tags, tag)
	next := *e
	next.record = rec
	s.describe(&next)
	return &next
}

func sameRecord(old *entry, rec store.Image) bool {
	return old != nil && maps.Equal(old.record.Tags, rec.Tags) &&
		slices.Equal(old.record.Digests, rec.Digests) &&
		slices.EqualFunc(old.record.Targets, rec.Targets, func(a, b store.Target) bool {
			return a.Root.Digest == b.Root.Digest && a.Manifest.Digest == b.Manifest.Digest
		})
}
