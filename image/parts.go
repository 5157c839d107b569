package image

import (
	"time"

	"crisp/image/store"
)

// partsInterval is how often it is looked whether what interrupted pulls have
// left is too old, or the disk too full for it.
const partsInterval = time.Minute

// partsLeft has what an interrupted pull leaves bounded from now on.
func (s *Service) partsLeft() {
	select {
	case s.partsWanted <- struct{}{}:
	default:
	}
}

// watchParts bounds what interrupted pulls leave until the service ends, whole
// layers too if that is said. It sleeps as long as there is nothing.
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

// trimParts bounds the parts, and reports whether any are left.
func (s *Service) trimParts() (left bool) {
	s.removeParts(s.blobs.TrimParts(time.Now()))
	n, _ := s.blobs.Parts()
	return n > 0
}

// trimWhole looks at the blobs and layers that interrupted pulls, the last of
// them at that time, have left whole, and reports whether any are left. The next
// pull has them for nothing, so they stay for as long as parts and while there
// is room for all. Then the layers go, and the blobs become parts.
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

// dropParts frees all room that interrupted pulls take.
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
		s.log.Warn("cannot remove yet what interrupted pulls have left", "err", err)
	}
}
