package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
)

// catalog is a snapshot of all images. It does not change once it is indexed.
type catalog struct {
	entries map[digest.Digest]*entry
	images  []Image
	byName  map[string]digest.Digest // tags and digest references
}

// entry is one image with all that belongs to it.
type entry struct {
	record store.Image
	image  Image
	// blobs and chains are what the image needs, as far as it is known.
	blobs  []digest.Digest
	chains []digest.Digest
	// config describes the image's configuration, if it is known.
	config ocispec.Descriptor
	// err says why the image is not usable.
	err error
}

// load makes an entry of a record, from the documents that it leads to.
func (s *Service) load(rec store.Image) *entry {
	e := &entry{record: rec}
	blobs := map[digest.Digest]bool{rec.ID: true}
	for _, t := range rec.Targets {
		blobs[t.Root.Digest], blobs[t.Manifest.Digest] = true, true
		if !s.blobs.Has(t.Root) {
			e.err = fmt.Errorf("%w: %s is missing", ErrInvalid, t.Root.Digest)
		}

		var m manifest
		if err := s.decodeStored(t.Manifest, registry.MaxDocument, &m); err != nil {
			e.err = err
			continue
		}

		if m.Config.Digest != rec.ID {
			e.err = fmt.Errorf("%w: %s is of another image", ErrInvalid, t.Manifest.Digest)
			continue
		}

		e.config, e.image.Manifest = m.Config.oci(), t.Manifest.Digest
		for _, l := range m.Layers {
			blobs[l.Digest] = true
			if !s.blobs.Has(l.oci()) {
				e.err = fmt.Errorf("%w: layer %s is missing", ErrInvalid, l.Digest)
			}
		}
	}

	e.blobs = slices.Collect(maps.Keys(blobs))
	var c configuration
	err := s.decodeStored(e.config, registry.MaxDocument, &c)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		e.err = err
		return e
	}

	e.image.Config = c.image()
	e.chains = layer.ChainIDs(e.image.Config.RootFS.DiffIDs)
	s.describe(e)
	return e
}

// describe fills in what the image is called and takes up.
func (s *Service) describe(e *entry) {
	im := &e.image
	im.ID = e.record.ID.String()
	im.ChainIDs = e.chains
	im.RepoTags = slices.Sorted(maps.Keys(e.record.Tags))
	im.RepoDigests = slices.Sorted(slices.Values(e.record.Digests))
	im.Size = 0

	for _, d := range e.blobs {
		im.Size += s.blobs.DiskSize(d)
	}
	for _, c := range e.chains {
		rec, ok := s.layers.Get(c)
		if !ok {
			e.err = fmt.Errorf("%w: unpacked layer %s is missing", ErrInvalid, c)
		}
		im.Size += rec.Bytes
	}
}

// index completes a catalog that has its entries.
func (c *catalog) index(pinned []string) *catalog {
	c.images, c.byName = nil, map[string]digest.Digest{}
	for _, id := range slices.Sorted(maps.Keys(c.entries)) {
		e := c.entries[id]
		if e.err != nil {
			continue
		}
		e.image.Pinned = slices.ContainsFunc(e.image.RepoTags, func(tag string) bool { return matchesAny(pinned, tag) })
		c.images = append(c.images, e.image)
	}

	for id, e := range c.entries {
		for tag := range e.record.Tags {
			c.byName[tag] = id
		}
		for _, d := range e.record.Digests {
			c.byName[d] = id
		}
	}

	return c
}

// Repository is the full name of the repository that a reference is of,
// "docker.io/library/busybox" for "busybox:1".
func Repository(ref string) (string, error) {
	parsed, err := registry.ParseReference(ref)
	return parsed.Name(), err
}

// CheckPattern wants a pattern of pinned images to be one that can match: a
// reference, or one with * in it. Otherwise the error is ErrInvalidReference.
func CheckPattern(pattern string) error {
	if !strings.ContainsAny(pattern, `*?[\`) {
		_, err := registry.ParseReference(pattern)
		return err
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("%w: pattern %q: %w", ErrInvalidReference, pattern, err)
	}
	return nil
}

// matchesAny reports whether a pattern matches a full reference. Patterns are
// normalised like references; * stands for any characters.
func matchesAny(patterns []string, tag string) bool {
	for _, p := range patterns {
		if ref, err := registry.ParseReference(p); err == nil && ref.String() == tag {
			return true
		}
		if ok, err := path.Match(strings.ReplaceAll(p, "/", "\x00"), strings.ReplaceAll(tag, "/", "\x00")); err == nil && ok {
			return true
		}
	}
	return false
}

// with returns a catalog in which some entries are others; nil removes one.
func (c *catalog) with(changes map[digest.Digest]*entry, pinned []string) *catalog {
	next := &catalog{entries: maps.Clone(c.entries)}
	for id, e := range changes {
		if e == nil {
			delete(next.entries, id)
		} else {
			next.entries[id] = e
		}
	}
	return next.index(pinned)
}

// records lists what is to be written down.
func (c *catalog) records() []store.Image {
	list := make([]store.Image, 0, len(c.entries))
	for _, id := range slices.Sorted(maps.Keys(c.entries)) {
		list = append(list, c.entries[id].record)
	}
	return list
}

var idPattern = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{1,64})$`)

// find looks up what ref may mean: an ID, a name, or the beginning of an ID.
// It finds damaged images too.
func (c *catalog) find(ref string) (*entry, error) {
	if e := c.entries[digest.Digest(ref)]; e != nil {
		return e, nil
	}
	hex := ""

	if m := idPattern.FindStringSubmatch(ref); m != nil {
		hex = m[1]
		if e := c.entries[digest.NewDigestFromEncoded(digest.SHA256, hex)]; e != nil {
			return e, nil
		}
	}

	parsed, err := registry.ParseReference(ref)
	if err == nil {
		if id, ok := c.byName[parsed.String()]; ok {
			return c.entries[id], nil
		}
	}

	if hex == "" {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w here: %q", ErrNotFound, ref)
	}

	var found *entry
	for id, e := range c.entries {
		if id.Algorithm() == digest.SHA256 && strings.HasPrefix(id.Encoded(), hex) {
			if found != nil {
				return nil, fmt.Errorf("%w: %q", ErrAmbiguous, ref)
			}
			found = e
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%w here: %q", ErrNotFound, ref)
	}

	return found, nil
}

// Get returns the image that ref names: a reference, an ID with or without its
// algorithm, or the beginning of an ID.
func (s *Service) Get(ref string) (Image, error) {
	e, err := s.snapshot.Load().find(ref)
	if err != nil {
		return Image{}, err
	}
	if e.err != nil {
		return Image{}, fmt.Errorf("%w here: %q is damaged: %w", ErrNotFound, ref, e.err)
	}
	return e.image, nil
}

// Details is [Service.Get] with the whole of the configuration, history and
// labels included, which is read from the disk.
func (s *Service) Details(ctx context.Context, ref string) (Image, error) {
	e, err := s.snapshot.Load().find(ref)
	if err != nil {
		return Image{}, err
	}
	if e.err != nil {
		return Image{}, fmt.Errorf("%w here: %q is damaged: %w", ErrNotFound, ref, e.err)
	}

	// Decoding must not write to what the snapshot shares.
	im, doc := e.image, &spool{dir: s.blobs.TempDir()}
	im.Config = ocispec.Image{}
	defer doc.close()

	if err := s.local(doc, e.config); err != nil {
		return Image{}, fmt.Errorf("read configuration of %q: %w", ref, err)
	}
	err = s.decoded(ctx, doc, func(data []byte) error { return json.Unmarshal(data, &im.Config) })
	if err != nil {
		return Image{}, fmt.Errorf("read configuration of %q: %w", ref, err)
	}

	return im, nil
}

// List returns all images. The slice is shared and must not be changed.
func (s *Service) List() []Image { return s.snapshot.Load().images }
