package image

import (
	"context"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	// defaultSyncDelay leaves the disk to the containers that an image was
	// pulled for.
	defaultSyncDelay = 5 * time.Second
	maxSyncDelay     = time.Minute
	// closeSync is how long the disk may take when the service is closed. What
	// is not known to be there then is synced by the next one.
	closeSync = 2 * time.Second
)

// syncs is the state of the one goroutine that brings what pulls wrote to the
// disk. Pulls do not wait for it: as long as the machine runs what they wrote
// is whole, and after a power cut what is not known to be on disk is not trusted.
type syncs struct {
	// wanted has room for one.
	wanted chan struct{}
	done   chan struct{}
	// failed are images and layers that a failed sync may have lost parts of.
	// A later one that succeeds says nothing about them. Owned by the goroutine.
	failed map[digest.Digest]bool
}

// wantSync has the disk brought up to date soon.
func (s *Service) wantSync() {
	select {
	case s.syncs.wanted <- struct{}{}:
	default:
	}
}

// syncSoon syncs a while after it was wanted, until the service ends.
func (s *Service) syncSoon() {
	defer close(s.syncs.done)
	delay := s.opts.SyncDelay
	for {
		select {
		case <-s.syncs.wanted:
		case <-s.ctx.Done():
			return
		}

		select {
		case <-time.After(delay):
		case <-s.ctx.Done():
			return
		}

		delay = s.opts.SyncDelay
		if err := s.sync(s.ctx); err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.log.Warn("images are not known to be on disk yet: after a power cut they would be pulled again", "err", err)
			delay = min(max(2*delay, time.Second), maxSyncDelay)
			s.wantSync()
		}
	}
}

// syncDisk waits for the disk, or until ctx ends.
func (s *Service) syncDisk(ctx context.Context) error {
	return s.blobs.Sync(func(dir *os.File) error { return s.opts.Sync(ctx, dir) })
}

// syncHere is a Sync in this process, which cannot end before it has.
func syncHere(ctx context.Context, dir *os.File) error {
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}

	done := make(chan error, 1)
	go func() {
		done <- unix.Syncfs(fd)
		unix.Close(fd)
	}()

	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sync brings everything to the disk that was pulled before the call, and
// records that it is there. If ctx ends before nothing is recorded.
func (s *Service) sync(ctx context.Context) error {
	images := map[digest.Digest]*entry{}
	for id, e := range s.snapshot.Load().entries {
		if e.record.Unsynced == s.opts.BootID && !s.syncs.failed[id] {
			images[id] = e
		}
	}

	// Read after the images that they belong to, so that no image counts as on
	// disk before its layers.
	layers := s.trusted(s.layers.Unsynced())
	if len(layers)+len(images) == 0 {
		return nil
	}

	if err := s.step("sync", func() error { return s.syncDisk(ctx) }); err != nil {
		if ctx.Err() != nil {
			return err
		}
		for _, c := range layers {
			s.syncs.failed[c] = true
		}

		for id := range images {
			s.syncs.failed[id] = true
		}
		return err
	}

	for _, c := range layers {
		if err := s.step("mark layer", func() error { return s.layers.MarkSynced(c) }); err != nil {
			return err
		}
	}

	if err := s.markImages(images); err != nil {
		return err
	}

	// The records of layers are written as little durably as the layers were.
	return s.step("sync records", func() error { return s.syncDisk(ctx) })
}

// trusted leaves out what an earlier sync failed on.
func (s *Service) trusted(list []digest.Digest) (ok []digest.Digest) {
	for _, d := range list {
		if !s.syncs.failed[d] {
			ok = append(ok, d)
		}
	}
	return ok
}

// markImages records durably that images are on disk. One that changed in the
// meantime waits for the next sync, which its change has asked for.
func (s *Service) markImages(images map[digest.Digest]*entry) error {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	now := s.snapshot.Load()
	changes := map[digest.Digest]*entry{}
	for id, e := range images {
		if now.entries[id] != e {
			continue
		}
		synced := *e
		synced.record = e.record.Clone()
		synced.record.Unsynced = ""
		changes[id] = &synced
	}

	next := now.with(changes, s.opts.Pinned)
	if err := s.step("mark images", func() error { return s.blobs.SetImages(next.records(), true) }); err != nil {
		return err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot.Store(next)
	return nil
}
