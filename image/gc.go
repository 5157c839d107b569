package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Remove removes the image that ref names, with all its tags. What running
// containers use of it stays until they are discarded. An image that is not
// here is no error. Who removes images wants room: what interrupted pulls have
// left of others goes, too.
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
	case <-ctx.Done(): // the removal goes on all the same
		return context.Cause(ctx)
	}
}

func (s *Service) remove(ref string) (<-chan struct{}, error) {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	now := s.snapshot.Load()
	e, err := now.find(ref)
	if err != nil {
		return nil, err
	}

	next := now.with(map[digest.Digest]*entry{e.record.ID: nil}, s.opts.Pinned)
	if err := s.blobs.SetImages(next.records(), true); err != nil {
		return nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot.Store(next)
	s.removeParts(s.blobs.DropParts())
	return s.collect()
}

// collect removes blobs and layers that no image, container or pull needs. It
// returns what closes when the disk space is free.
//
// Preconditions: mu is held.
func (s *Service) collect() (<-chan struct{}, error) {
	return s.drop(s.blobs.Detach)
}

// demote is collect for what an interrupted pull may have left: of blobs, which
// would have to be fetched again, it makes parts, to be bounded like others.
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
	for _, e := range s.snapshot.Load().entries {
		for _, d := range e.blobs {
			needed[d] = true
		}
		for _, c := range e.chains {
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

// drop removes what is not needed, blobs by take, which returns what of them is
// to be removed.
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
