package image

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Disk is what images use of the disk, in bytes. Nothing is counted twice.
type Disk struct {
	// Blobs are compressed layers, manifests and configurations, Layers unpacked
	// ones, Parts partial downloads.
	Blobs  uint64 `json:"blobs"`
	Layers uint64 `json:"layers"`
	Parts  uint64 `json:"parts"`
	// Kept is the share of that which no image needs, but containers or pulls do.
	Kept   uint64      `json:"kept"`
	Images []ImageDisk `json:"images"`
}

// ImageDisk is what one image uses: what only it does, which its removal frees unless
// containers use it, and what it shares with others.
type ImageDisk struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	Exclusive uint64 `json:"exclusive"`
	Shared    uint64 `json:"shared"`
	Pinned    bool   `json:"pinned,omitempty"`
	// Checkpoint is the container of which the image is a checkpoint, if it is one.
	Checkpoint string `json:"checkpoint,omitempty"`
	// Since is when it was pulled or imported last, or found when the daemon started.
	Since time.Time `json:"since"`
}

// Disk reports the disk usage of images from memory, without looking at the disk.
func (s *Service) Disk() Disk {
	s.mu.Lock()
	images := s.snapshot.Load().byID
	users, sizes := map[string]int{}, map[string]uint64{}
	for _, im := range images {
		for d, size := range s.sizesOf(im) {
			users[d]++
			sizes[d] = size
		}
	}

	out := Disk{Layers: s.layers.Usage().Bytes, Images: []ImageDisk{}}
	_, out.Parts = s.blobs.Parts()
	out.Blobs = s.blobs.Usage().Bytes - out.Parts
	needed := uint64(0)
	for _, size := range sizes {
		needed += size
	}
	out.Kept = out.Blobs + out.Layers - min(needed, out.Blobs+out.Layers)

	for _, im := range images {
		one := ImageDisk{ID: im.record.ID.String(), Name: im.record.ID.String(), Pinned: im.image.Pinned, Checkpoint: im.image.Checkpoint, Since: im.since}
		if names := slices.Concat(im.image.RepoTags, im.image.RepoDigests); len(names) > 0 {
			one.Name = names[0]
		}
		for d, size := range s.sizesOf(im) {
			if users[d] > 1 {
				one.Shared += size
			} else {
				one.Exclusive += size
			}
		}
		out.Images = append(out.Images, one)
	}
	s.mu.Unlock()

	slices.SortFunc(out.Images, func(a, b ImageDisk) int {
		return cmp.Or(cmp.Compare(b.Exclusive, a.Exclusive), strings.Compare(a.Name, b.Name))
	})
	return out
}

// sizesOf are the sizes of an image's blobs and layers, each once. A layer without
// compression may have the digest of its blob.
func (s *Service) sizesOf(im *stored) map[string]uint64 {
	sizes := map[string]uint64{}
	for _, d := range im.blobs {
		sizes["blob "+d.String()] = s.blobs.DiskSize(d)
	}
	for _, c := range im.chains {
		if rec, ok := s.layers.Get(c); ok {
			sizes["layer "+c.String()] = rec.Bytes
		}
	}
	return sizes
}
