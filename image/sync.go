package image

import (
	"context"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// defaultSyncDelay leaves the disk to the start of the containers that an
	// image was pulled for.
	defaultSyncDelay = 5 * time.Second
	maxSyncDelay     = time.Minute
	// closeSync bounds the sync when the service is closed. What is not synced by
	// then is left to the next start.
	closeSync = 2 * time.Second
)

// syncs is the state of the one goroutine that syncs what pulls wrote. Pulls do
// not wait for it: while the machine runs, what they wrote is intact, and after
// a power cut what is not known to be on disk is not trusted.
type syncs struct {
	// wanted has capacity one.
	wanted chan struct{}
	done   chan struct{}
	// failed are images and layers of which a failed sync may have lost data: the
	// kernel reports a write error once, so a later sync that succeeds proves
	// nothing about them. Owned by the goroutine.
	failed map[digest.Digest]bool
}

// wantSync requests a sync in the near future.
func (s *Service) wantSync() {
	select {
	case s.syncs.wanted <- struct{}{}:
	default:
	}
}

// syncSoon syncs some time after each request, until the service ends.
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
			klog.InfoS("Could not sync images, will retry; after a power cut they would be pulled again", "err", err)
			delay = min(max(2*delay, time.Second), maxSyncDelay)
			s.wantSync()
		}
	}
}

// syncDisk syncs the image store's file system, or returns when ctx ends.
func (s *Service) syncDisk(ctx context.Context) error {
	return s.blobs.Sync(func(dir *os.File) error { return s.opts.Sync(ctx, dir) })
}

// syncHere is a Sync in this process, which cannot exit until the kernel returns.
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

// sync syncs everything that was pulled before the call, and records that it is
// on disk. If ctx ends first, nothing is recorded.
func (s *Service) sync(ctx context.Context) error {
	images := map[digest.Digest]*stored{}
	for id, im := range s.snapshot.Load().byID {
		if im.record.Unsynced == s.opts.BootID && !s.syncs.failed[id] {
			images[id] = im
		}
	}

	// Read after the images that they belong to, so that no image counts as on
	// disk before its layers.
	layers := s.trusted(s.layers.Unsynced())
	if len(layers)+len(images) == 0 {
		return nil
	}

	if err := s.withFailpoints("sync", func() error { return s.syncDisk(ctx) }); err != nil {
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
		if err := s.withFailpoints("mark layer", func() error { return s.layers.MarkSynced(c) }); err != nil {
			return err
		}
	}

	if err := s.markImages(images); err != nil {
		return err
	}

	// The records of layers were not written durably either.
	return s.withFailpoints("sync records", func() error { return s.syncDisk(ctx) })
}

// trusted filters out what an earlier sync failed on.
func (s *Service) trusted(list []digest.Digest) (ok []digest.Digest) {
	for _, d := range list {
		if !s.syncs.failed[d] {
			ok = append(ok, d)
		}
	}
	return ok
}

// markImages records durably that images are on disk. One that has changed since
// is left to the next sync, which the change has requested.
func (s *Service) markImages(images map[digest.Digest]*stored) error {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	now := s.snapshot.Load()
	changes := map[digest.Digest]*stored{}
	for id, im := range images {
		if now.byID[id] != im {
			continue
		}
		synced := *im
		synced.record = im.record.Clone()
		synced.record.Unsynced = ""
		changes[id] = &synced
	}

	next := now.with(changes, s.choices.Load().Pinned)
	if err := s.withFailpoints("mark images", func() error { return s.blobs.SetImages(next.records(), true) }); err != nil {
		return err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot.Store(next)
	return nil
}
