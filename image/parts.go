package image

import (
	"time"

	"k8s.io/klog/v2"

	"crisp/image/store"
)

// partsInterval is how often the age of partial downloads and the free space of
// the disk are checked.
const partsInterval = time.Minute

// noteParts wakes the goroutine that bounds partial downloads, after a pull that
// may have left some.
func (s *Service) noteParts() {
	select {
	case s.partsWanted <- struct{}{}:
	default:
	}
}

// watchParts bounds what interrupted pulls leave until the service ends, with
// whole also complete layers. It sleeps while there is nothing.
func (s *Service) watchParts(whole bool) {
	interrupted := time.Now()
	for {
		var again <-chan time.Time
		left := whole && s.trimWhole(interrupted)
		if s.trimParts() || left {
			again = time.After(partsInterval)
		}

		select {
		case <-again:
		case <-s.partsWanted:
			interrupted = time.Now()
		case <-s.ctx.Done():
			return
		}
	}
}

// trimParts bounds the partial downloads, and reports whether any are left.
func (s *Service) trimParts() (left bool) {
	s.removeParts(s.blobs.TrimParts(time.Now()))
	n, _ := s.blobs.Parts()
	return n > 0
}

// trimWhole bounds the complete blobs and layers that interrupted pulls, the
// last one at the given time, have left, and reports whether any are left. They
// cost the next pull nothing, so they stay as long as partial downloads do and
// while there is room for all of them. Then the layers are removed, and the
// blobs become partial downloads.
func (s *Service) trimWhole(interrupted time.Time) (left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blobs, chains := s.unneeded()
	if len(blobs)+len(chains) == 0 {
		return false
	}

	_, total := s.blobs.Parts()
	for _, d := range blobs {
		total += s.blobs.DiskSize(d)
	}

	for _, c := range chains {
		if rec, ok := s.layers.Get(c); ok {
			total += rec.Bytes
		}
	}

	room, err := s.blobs.PartRoom(total)
	if err == nil && (total > room || time.Since(interrupted) > store.MaxPartAge) {
		err = s.demote()
	}
	if err != nil {
		s.removeParts(nil, err)
		return true
	}

	blobs, chains = s.unneeded()
	return len(blobs)+len(chains) > 0
}

// dropParts frees all disk space that interrupted pulls use.
func (s *Service) dropParts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.collect()
	s.removeParts(nil, err)
	s.removeParts(s.blobs.DropParts())
}

func (s *Service) removeParts(gone []string, err error) {
	s.janitor.add(gone...)
	if err != nil {
		klog.InfoS("Could not remove data of interrupted pulls, will retry", "err", err)
	}
}
