package image

import (
	"context"
	"errors"
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

// Damage is a blob or layer whose data on disk is corrupt.
type Damage struct {
	// What names a blob by its digest, or an unpacked layer by its chain ID.
	What string `json:"what"`
	// Images are names of the images that use it.
	Images []string `json:"images"`
	// Why describes the corruption.
	Why string `json:"why"`
	// Repaired is true if the damage was repaired; else Remains may give the
	// reason why it was not.
	Repaired bool   `json:"repaired"`
	Remains  string `json:"remains,omitempty"`
}

// Checked counts what was checked. Layers that no image uses any more, or whose
// blobs are damaged, cannot be checked.
type Checked struct {
	Blobs     int   `json:"blobs"`
	Layers    int   `json:"layers"`
	Unchecked int   `json:"unchecked"`
	Damaged   int   `json:"damaged"`
	Repaired  int   `json:"repaired"`
	Bytes     int64 `json:"bytes"` // of blobs
	// Parts is the number of partial downloads, which use PartBytes of disk
	// space. They can only be verified once they are complete.
	Parts     int    `json:"parts"`
	PartBytes uint64 `json:"partBytes"`
}

// Check compares every blob with its digest and every unpacked layer with what
// its blob unpacks to, one after the other, and calls found for each damage. It
// reads everything on disk, and needs the space of one more layer.
//
// With repair, a damaged blob is fetched again from its image's registry, without
// credentials, and a damaged layer is unpacked again. A layer that a container
// uses is not replaced.
func (s *Service) Check(ctx context.Context, repair bool, found func(Damage)) (Checked, error) {
	c := &checkup{s: s, repair: repair, found: found, bad: map[digest.Digest]bool{}}
	c.survey()
	defer c.unpin()
	for _, d := range slices.Sorted(maps.Keys(c.blobs)) {
		if err := c.blob(ctx, d); err != nil {
			return c.count, fmt.Errorf("check images: %w", err)
		}
	}

	for _, l := range c.layers {
		if err := c.layer(ctx, l); err != nil {
			return c.count, fmt.Errorf("check images: %w", err)
		}
	}

	c.count.Parts, c.count.PartBytes = s.blobs.Parts()
	c.count.Unchecked = len(s.layers.ChainIDs()) - c.count.Layers
	return c.count, nil
}

// checkup is one run of [Service.Check].
type checkup struct {
	s      *Service
	repair bool
	found  func(Damage)
	count  Checked

	blobs  map[digest.Digest][]*stored // all blobs, with the images that use them
	bad    map[digest.Digest]bool      // blobs that are damaged and not repaired
	layers []unpacked                  // parents first
	pinned []digest.Digest
}

// unpacked is an unpacked layer and its origin.
type unpacked struct {
	desc                ocispec.Descriptor
	diff, chain, parent digest.Digest
	images              []*stored
}

// survey lists all blobs and layers, and pins them.
func (c *checkup) survey() {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()

	c.blobs = map[digest.Digest][]*stored{}
	for _, d := range s.blobs.Digests() {
		c.blobs[d] = nil
	}

	position := map[digest.Digest]int{} // of a layer in c.layers
	images := s.snapshot.Load().byID
	for _, id := range slices.Sorted(maps.Keys(images)) {
		im := images[id]
		for _, d := range im.blobs {
			if _, exists := c.blobs[d]; exists {
				c.blobs[d] = append(c.blobs[d], im)
			}
		}

		for _, l := range s.unpackedOf(im) {
			i, known := position[l.chain]
			if !known {
				i = len(c.layers)
				position[l.chain] = i
				c.layers = append(c.layers, l)
			}
			c.layers[i].images = append(c.layers[i].images, im)
		}
	}

	c.pinned = slices.Collect(maps.Keys(c.blobs))
	for chain := range position {
		c.pinned = append(c.pinned, chain)
	}
	s.pin(c.pinned)
}

func (c *checkup) unpin() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.unpin(c.pinned)
}

// unpackedOf lists the unpacked layers of an image, the lowest first. A manifest
// that cannot be read is skipped: the check of blobs reports it.
func (s *Service) unpackedOf(im *stored) (list []unpacked) {
	for _, t := range im.record.Targets {
		var m manifest
		if s.decodeStored(t.Manifest, registry.MaxDocument, &m) != nil || len(m.Layers) != len(im.chains) {
			continue
		}

		var parent digest.Digest
		for i, desc := range m.Layers {
			if _, ok := s.layers.Get(im.chains[i]); !ok {
				break
			}
			list = append(list, unpacked{desc: desc.oci(), diff: im.image.Config.RootFS.DiffIDs[i], chain: im.chains[i], parent: parent})
			parent = im.chains[i]
		}

		return list
	}
	return nil
}

// names lists the tags of images, or the digests of those without tags.
func names(images []*stored) (list []string) {
	for _, im := range images {
		list = append(list, slices.Sorted(maps.Keys(im.record.Tags))...)
		if len(im.record.Tags) == 0 {
			list = append(list, im.record.Digests...)
		}
	}
	return list
}

// blob checks a blob. It returns an error only if ctx ends.
func (c *checkup) blob(ctx context.Context, d digest.Digest) error {
	size, err := c.s.blobs.Check(ctx, d)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, store.ErrNotFound) && !slices.Contains(c.s.blobs.Digests(), d): // removed since the survey
		return nil
	}

	c.count.Blobs++
	c.count.Bytes += size
	if err == nil {
		return nil
	}

	damage := Damage{What: "blob " + d.String(), Images: names(c.blobs[d]), Why: err.Error()}
	c.bad[d] = true
	if c.repair {
		if err := c.fetch(ctx, d); err != nil {
			damage.Remains = err.Error()
		} else {
			damage.Repaired, c.bad[d] = true, false
		}
	}

	c.report(damage)
	return nil
}

// report counts damage and passes it on.
func (c *checkup) report(d Damage) {
	c.count.Damaged++
	if d.Repaired {
		c.count.Repaired++
	}
	c.found(d)
}

// fetch fetches a damaged blob again, by a pull of an image that uses it: a pull
// verifies doubtful blobs.
func (c *checkup) fetch(ctx context.Context, d digest.Digest) error {
	err := errors.New("no image uses it; it is removed with the next image that is removed")
	c.s.blobs.Doubt(d, true)
	for _, im := range c.blobs[d] {
		for _, ref := range im.record.Digests {
			if _, err = c.s.Pull(ctx, ref, nil); err != nil {
				continue
			}
			if _, err = c.s.blobs.Check(ctx, d); err == nil {
				return nil
			}
		}
	}
	return err
}

// layer checks an unpacked layer. It returns an error only if the check itself
// fails, as for lack of disk space, or ctx ends.
func (c *checkup) layer(ctx context.Context, l unpacked) error {
	if c.bad[l.desc.Digest] {
		return nil
	}
	stage, err := c.s.layers.Stage(l.chain, l.diff, l.parent)
	defer func() { c.s.janitor.add(stage.Discard()) }()
	if err != nil {
		return err
	}
	open := func(context.Context) (io.ReadCloser, error) { return c.s.blobs.Reader(l.desc) }
	if err := c.unpack(ctx, stage, open, l); err != nil {
		return fmt.Errorf("unpack layer %s: %w", l.chain, err)
	}

	difference, err := stage.Compare(ctx)
	if errors.Is(err, layer.ErrNotFound) {
		return nil
	}

	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.count.Layers++
	if err == nil && difference == "" {
		return nil
	}
	if err != nil { // the layer cannot be read
		difference = err.Error()
	}

	damage := Damage{What: "layer " + l.chain.String(), Images: names(l.images), Why: difference}
	if c.repair {
		if err := c.s.replaceLayer(l.chain, stage); err != nil {
			damage.Remains = err.Error()
		} else {
			damage.Repaired = true
		}
	}

	c.report(damage)
	return nil
}

// unpack unpacks a layer for the comparison, with the memory of a large one.
func (c *checkup) unpack(ctx context.Context, stage *layer.Stage, open layer.Source, l unpacked) error {
	release, err := c.s.budget.Unpack(ctx, true)
	if err != nil {
		return err
	}
	defer release()
	return stage.Unpack(ctx, open, layer.Limits{Bytes: unpackedLimit(l.desc.Size), LargeMemory: true})
}

// replaceLayer replaces a layer by its stage, unless a container uses it.
func (s *Service) replaceLayer(chain digest.Digest, stage *layer.Stage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var users []string
	for _, id := range s.containers.IDs() {
		for _, top := range s.containers.Chains(id) {
			if slices.Contains(s.layers.Chain(top), chain) {
				users = append(users, id)
				break
			}
		}
	}
	if len(users) > 0 {
		return fmt.Errorf("containers use it: remove %v and check again", users)
	}

	gone, err := stage.Replace()
	s.janitor.add(gone)
	s.wantSync()
	return err
}
