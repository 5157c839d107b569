package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
)

// catalog is a snapshot of all images. It does not change once it is indexed.
type catalog struct {
	byID   map[digest.Digest]*stored
	byName map[string]digest.Digest // IDs by tag and by digest reference
	images []Image                  // those that are usable, by ID
}

// stored is an image on record with all that belongs to it.
type stored struct {
	record store.Image
	image  Image
	// blobs and chains are what the image needs, as far as its documents can be
	// read.
	blobs  []digest.Digest
	chains []digest.Digest
	// config describes the image's configuration; empty if no manifest can be
	// read.
	config ocispec.Descriptor
	// since is when it was pulled, imported or found.
	since time.Time
	// err is the first defect that was found; the image is not usable then.
	err error
}

// load reads the documents that a record leads to, as far as they are intact.
func (s *Service) load(rec store.Image) *stored {
	im := &stored{record: rec, since: time.Now()}
	im.err = s.loadTargets(im)

	if err := s.loadConfig(im); err != nil {
		im.err = cmp.Or(im.err, err)
		return im
	}

	im.err = cmp.Or(im.err, s.describe(im))
	return im
}

// loadTargets follows the manifests of an image to its configuration and layers.
// It collects what it can and returns the first defect.
func (s *Service) loadTargets(im *stored) (defect error) {
	blobs := map[digest.Digest]bool{im.record.ID: true}
	for _, t := range im.record.Targets {
		blobs[t.Root.Digest], blobs[t.Manifest.Digest] = true, true
		if !s.blobs.Has(t.Root) {
			defect = cmp.Or(defect, fmt.Errorf("%w: %s is missing", ErrInvalid, t.Root.Digest))
		}

		m, err := s.loadManifest(t.Manifest, im.record.ID)
		if err != nil {
			defect = cmp.Or(defect, err)
			continue
		}

		im.config, im.image.Manifest = m.Config.oci(), t.Manifest.Digest
		im.image.Checkpoint = m.checkpoint()
		for _, l := range m.Layers {
			blobs[l.Digest] = true
			if !s.blobs.Has(l.oci()) {
				defect = cmp.Or(defect, fmt.Errorf("%w: layer %s is missing", ErrInvalid, l.Digest))
			}
		}
	}

	im.blobs = slices.Collect(maps.Keys(blobs))
	return defect
}

// loadManifest reads the manifest of the image with an ID.
func (s *Service) loadManifest(desc ocispec.Descriptor, id digest.Digest) (manifest, error) {
	var m manifest
	if err := s.decodeStored(desc, registry.MaxDocument, &m); err != nil {
		return manifest{}, err
	}
	if m.Config.Digest != id {
		return manifest{}, fmt.Errorf("%w: manifest %s belongs to another image", ErrInvalid, desc.Digest)
	}
	return m, nil
}

// loadConfig reads the configuration of an image, which names its layers.
func (s *Service) loadConfig(im *stored) error {
	var c configuration
	if err := s.decodeStored(im.config, registry.MaxDocument, &c); err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}

	im.image.Config = c.image()
	im.chains = layer.ChainIDs(im.image.Config.RootFS.DiffIDs)
	return nil
}

// describe fills in names and disk usage of an image. It returns an error if an
// unpacked layer is missing.
func (s *Service) describe(im *stored) (defect error) {
	out := &im.image
	out.ID = im.record.ID.String()
	out.ChainIDs = im.chains
	out.RepoTags = slices.Sorted(maps.Keys(im.record.Tags))
	out.RepoDigests = slices.Sorted(slices.Values(im.record.Digests))

	out.Size = 0
	for _, d := range im.blobs {
		out.Size += s.blobs.DiskSize(d)
	}

	for _, c := range im.chains {
		rec, ok := s.layers.Get(c)
		if !ok {
			defect = cmp.Or(defect, fmt.Errorf("%w: unpacked layer %s is missing", ErrInvalid, c))
		}
		out.Size += rec.Bytes
	}

	return defect
}

// index completes a catalog of which byID is filled.
func (c *catalog) index(pinned []string) *catalog {
	c.images, c.byName = nil, map[string]digest.Digest{}
	for _, id := range slices.Sorted(maps.Keys(c.byID)) {
		im := c.byID[id]
		if im.err != nil {
			continue
		}
		im.image.Pinned = im.record.Pinned || slices.ContainsFunc(im.image.RepoTags, func(tag string) bool { return matchesAny(pinned, tag) })
		c.images = append(c.images, im.image)
	}

	// Damaged images keep their names, so that they can be removed by them.
	for id, im := range c.byID {
		for tag := range im.record.Tags {
			c.byName[tag] = id
		}
		for _, d := range im.record.Digests {
			c.byName[d] = id
		}
	}

	return c
}

// Repository returns the full name of a reference's repository,
// "docker.io/library/busybox" for "busybox:1".
func Repository(ref string) (string, error) {
	parsed, err := registry.ParseReference(ref)
	return parsed.Name(), err
}

// FullName returns a reference with its defaults filled in,
// "docker.io/library/busybox:1" for "busybox:1", and what is none as it is.
func FullName(ref string) string {
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return ref
	}
	return parsed.String()
}

// CheckPattern checks that a pattern of pinned images can match: it must be a
// reference or contain *. Otherwise the error is ErrInvalidReference.
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

// with returns a catalog with some images replaced; nil removes one.
func (c *catalog) with(changes map[digest.Digest]*stored, pinned []string) *catalog {
	next := &catalog{byID: maps.Clone(c.byID)}
	for id, im := range changes {
		if im == nil {
			delete(next.byID, id)
		} else {
			next.byID[id] = im
		}
	}
	return next.index(pinned)
}

// records lists the records to be written to disk.
func (c *catalog) records() []store.Image {
	list := make([]store.Image, 0, len(c.byID))
	for _, id := range slices.Sorted(maps.Keys(c.byID)) {
		list = append(list, c.byID[id].record)
	}
	return list
}

var idPattern = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{1,64})$`)

// find looks up an ID, a name, or a prefix of an ID, in this order. It finds
// damaged images too.
func (c *catalog) find(ref string) (*stored, error) {
	if im := c.byID[digest.Digest(ref)]; im != nil {
		return im, nil
	}

	prefix := ""
	if m := idPattern.FindStringSubmatch(ref); m != nil {
		prefix = m[1]
		if im := c.byID[digest.NewDigestFromEncoded(digest.SHA256, prefix)]; im != nil {
			return im, nil
		}
	}

	parsed, err := registry.ParseReference(ref)
	if err == nil {
		if id, ok := c.byName[parsed.String()]; ok {
			return c.byID[id], nil
		}
	}

	if prefix == "" && err != nil {
		return nil, err
	}
	return c.findPrefix(prefix, ref)
}

// findPrefix looks up a prefix of an ID in hexadecimal, which ref may be; "" if
// it is not one.
func (c *catalog) findPrefix(prefix, ref string) (*stored, error) {
	var found *stored
	for id, im := range c.byID {
		if prefix == "" || id.Algorithm() != digest.SHA256 || !strings.HasPrefix(id.Encoded(), prefix) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: %q", ErrAmbiguous, ref)
		}
		found = im
	}

	if found == nil {
		return nil, fmt.Errorf("%w locally: %q", ErrNotFound, ref)
	}
	return found, nil
}

// findUsable is find for images that are not damaged.
func (c *catalog) findUsable(ref string) (*stored, error) {
	im, err := c.find(ref)
	if err != nil {
		return nil, err
	}
	if im.err != nil {
		return nil, fmt.Errorf("%w locally: %q is damaged: %w", ErrNotFound, ref, im.err)
	}
	return im, nil
}

// Get returns the image that ref names: a reference, an ID with or without its
// algorithm, or a prefix of an ID.
func (s *Service) Get(ref string) (Image, error) {
	im, err := s.snapshot.Load().findUsable(ref)
	if err != nil {
		return Image{}, err
	}
	return im.image, nil
}

// Details is [Service.Get] with the whole configuration, history and labels
// included, which is read from the disk.
func (s *Service) Details(ctx context.Context, ref string) (Image, error) {
	im, err := s.snapshot.Load().findUsable(ref)
	if err != nil {
		return Image{}, err
	}

	// A fresh configuration: decoding must not write to what the snapshot shares.
	out, doc := im.image, &spool{dir: s.blobs.TempDir()}
	out.Config = ocispec.Image{}
	defer doc.close()

	if err := s.readLocal(doc, im.config); err != nil {
		return Image{}, fmt.Errorf("read configuration of %q: %w", ref, err)
	}
	err = s.decoded(ctx, doc, func(data []byte) error { return json.Unmarshal(data, &out.Config) })
	if err != nil {
		return Image{}, fmt.Errorf("read configuration of %q: %w", ref, err)
	}

	return out, nil
}

// List returns all images. The slice is shared and must not be changed.
func (s *Service) List() []Image { return s.snapshot.Load().images }
