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

// Damage is something that is not as it was written.
type Damage struct {
	// What is a blob or an unpacked layer, by its digest or chain ID.
	What string `json:"what"`
	// Images are names of the images that have it.
	Images []string `json:"images"`
	// Why says what is wrong.
	Why string `json:"why"`
	// Repaired damage is gone. Remains says why other damage is not.
	Repaired bool   `json:"repaired"`
	Remains  string `json:"remains,omitempty"`
}

// Checked counts what was checked. Layers that no image has any more, or
// whose blobs are damaged, cannot be.
type Checked struct {
	Blobs     int   `json:"blobs"`
	Layers    int   `json:"layers"`
	Unchecked int   `json:"unchecked"`
	Damaged   int   `json:"damaged"`
	Repaired  int   `json:"repaired"`
	Bytes     int64 `json:"bytes"` // of blobs
	// Parts are layers of which an interrupted pull has left the beginning, in
	// PartBytes of disk space. What they are shows when the rest is here.
	Parts     int    `json:"parts"`
	PartBytes uint64 `json:"partBytes"`
}

// Check compares every blob with its digest and every unpacked layer with what
// its blob unpacks to, one after the other, and tells what it finds. It reads
// all that is on disk, and takes up the room of one layer more.
//
// To repair damage is to fetch a blob again from where its image came, without
// credentials of a caller's, and to unpack a layer again. A layer that a
// container uses stays as it is.
func (s *Service) Check(ctx context.Context, repair bool, found func(Damage)) (Checked, error) {
	c := &checking{s: s, repair: repair, found: found, bad: map[digest.Digest]bool{}}
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

// checking is a check under way.
type checking struct {
	s      *Service
	repair bool
	found  func(Damage)
	count  Checked

	blobs  map[digest.Digest][]*entry // all blobs, with the images that have them
	bad    map[digest.Digest]bool     // blobs that are, and stay, damaged
	layers []unpacked                 // parents first
	pinned []digest.Digest
}

// unpacked is a layer and where it comes from.
type unpacked struct {
	desc                ocispec.Descriptor
	diff, chain, parent digest.Digest
	images              []*entry
}

// survey lists what is here, and keeps it from being removed.
func (c *checking) survey() {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	c.blobs = map[digest.Digest][]*entry{}

	for _, d := range s.blobs.Digests() {
		c.blobs[d] = nil
	}
	at := map[digest.Digest]int{}
	entries := s.snapshot.Load().entries
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		e := entries[id]
		for _, d := range e.blobs {
			if _, here := c.blobs[d]; here {
				c.blobs[d] = append(c.blobs[d], e)
			}
		}

		for _, l := range s.unpackedOf(e) {
			i, known := at[l.chain]
			if !known {
				i = len(c.layers)
				at[l.chain] = i
				c.layers = append(c.layers, l)
			}
			c.layers[i].images = append(c.layers[i].images, e)
		}
	}

	c.pinned = slices.Collect(maps.Keys(c.blobs))
	for chain := range at {
		c.pinned = append(c.pinned, chain)
	}
	for _, d := range c.pinned {
		s.pins[d]++
	}
}

func (c *checking) unpin() {
	p := puller{s: c.s, pinned: c.pinned}
	p.unpin()
}

// unpackedOf lists the layers of an image, the lowest first. A manifest that
// cannot be read is a damaged blob, which is found as such.
func (s *Service) unpackedOf(e *entry) (list []unpacked) {
	for _, t := range e.record.Targets {
		var m manifest
		if s.decodeStored(t.Manifest, registry.MaxDocument, &m) != nil || len(m.Layers) != len(e.chains) {
			continue
		}

		var parent digest.Digest
		for i, desc := range m.Layers {
			if _, here := s.layers.Get(e.chains[i]); !here {
				break
			}
			list = append(list, unpacked{desc: desc.oci(), diff: e.image.Config.RootFS.DiffIDs[i], chain: e.chains[i], parent: parent})
			parent = e.chains[i]
		}

		return list
	}
	return nil
}

// names are what some images are called.
func names(entries []*entry) (list []string) {
	for _, e := range entries {
		list = append(list, slices.Sorted(maps.Keys(e.record.Tags))...)
		if len(e.record.Tags) == 0 {
			list = append(list, e.record.Digests...)
		}
	}
	return list
}

// blob checks a blob. Only the end of ctx is an error.
func (c *checking) blob(ctx context.Context, d digest.Digest) error {
	size, err := c.s.blobs.Check(ctx, d)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, store.ErrNotFound) && !slices.Contains(c.s.blobs.Digests(), d): // removed meanwhile
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

	c.tell(damage)
	return nil
}

func (c *checking) tell(d Damage) {
	c.count.Damaged++
	if d.Repaired {
		c.count.Repaired++
	}
	c.found(d)
}

// fetch has a damaged blob fetched again: a pull compares what is in doubt
// with its digest.
func (c *checking) fetch(ctx context.Context, d digest.Digest) error {
	err := errors.New("no image has it; it goes with the next image that is removed")
	c.s.blobs.Doubt(d, true)
	for _, e := range c.blobs[d] {
		for _, ref := range e.record.Digests {
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

// layer checks an unpacked layer. Only what is wrong with this process or the
// disk it needs is an error.
func (c *checking) layer(ctx context.Context, l unpacked) error {
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
	if err != nil { // it cannot be read
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

	c.tell(damage)
	return nil
}

// unpack unpacks a layer as one that may take much.
func (c *checking) unpack(ctx context.Context, stage *layer.Stage, open layer.Source, l unpacked) error {
	release, err := c.s.budget.Unpack(ctx, true)
	if err != nil {
		return err
	}
	defer release()
	return stage.Unpack(ctx, open, layer.Limits{Bytes: int64(ratioFree) + maxRatio*min(l.desc.Size, 1<<50), Much: true})
}

// replaceLayer puts a stage in the place of its layer, if no container uses it.
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
