package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Remove removes the image that ref names, with all its tags, and returns when
// its disk space is free. Layers that containers use stay until these are
// discarded. It is not an error if there is no such image. Images are removed to
// free space, so partial downloads of other images are removed too.
func (s *Service) Remove(ctx context.Context, ref string) error {
	idle, err := s.remove(ref)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done(): // the removal continues in the background
		return context.Cause(ctx)
	}
}

func (s *Service) remove(ref string) (<-chan struct{}, error) {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	now := s.snapshot.Load()
	im, err := now.find(ref)
	if err != nil {
		return nil, err
	}

	next := now.with(map[digest.Digest]*stored{im.record.ID: nil}, s.choices.Load().Pinned)
	if err := s.blobs.SetImages(next.records(), true); err != nil {
		return nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot.Store(next)
	s.removeParts(s.blobs.DropParts())
	return s.collect()
}

// pin keeps blobs and layers from being removed, until [Service.unpin].
//
// Preconditions: mu is held.
func (s *Service) pin(list []digest.Digest) {
	for _, d := range list {
		s.pins[d]++
	}
}

// unpin undoes one [Service.pin].
//
// Preconditions: mu is held.
func (s *Service) unpin(list []digest.Digest) {
	for _, d := range list {
		if s.pins[d]--; s.pins[d] == 0 {
			delete(s.pins, d)
		}
	}
}

// collect removes blobs and layers that no image, container or pull needs. The
// channel that it returns is closed when the disk space is free.
//
// Preconditions: mu is held.
func (s *Service) collect() (<-chan struct{}, error) {
	return s.drop(s.blobs.Detach)
}

// demote is collect for what an interrupted pull may have left: blobs, which
// would have to be fetched again, become partial downloads, bounded like others.
//
// Preconditions: mu is held.
func (s *Service) demote() error {
	_, err := s.drop(s.blobs.Demote)
	return err
}

// unneeded lists the blobs and layers that no image, container or pull needs.
//
// Preconditions: mu is held.
func (s *Service) unneeded() (blobs, chains []digest.Digest) {
	needed := map[digest.Digest]bool{}
	for _, im := range s.snapshot.Load().byID {
		for _, d := range im.blobs {
			needed[d] = true
		}
		for _, c := range im.chains {
			needed[c] = true
		}
	}

	for d := range s.pins {
		needed[d] = true
	}
	for _, top := range s.containers.InUse() {
		for _, c := range s.layers.Chain(top) {
			needed[c] = true
		}
	}

	isNeeded := func(d digest.Digest) bool { return needed[d] }
	return slices.DeleteFunc(s.blobs.Digests(), isNeeded), slices.DeleteFunc(s.layers.ChainIDs(), isNeeded)
}

// drop removes what is not needed, blobs by take, which returns the name in the
// temporary directory of what is to be removed, "" for nothing.
//
// Preconditions: mu is held.
func (s *Service) drop(take func(digest.Digest) (string, error)) (<-chan struct{}, error) {
	blobs, chains := s.unneeded()
	var errs []error
	var gone []string
	for _, d := range blobs {
		name, err := take(d)
		errs = append(errs, err)
		gone = append(gone, name)
	}

	for _, c := range chains {
		name, err := s.layers.Detach(c)
		errs = append(errs, err)
		gone = append(gone, name)
	}

	return s.janitor.add(gone...), errors.Join(errs...)
}
