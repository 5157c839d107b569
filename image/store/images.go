package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/runtime/durable"
)

const (
	imagesFile    = "images.json"
	imagesVersion = 1
)

// Image is the record of one image: who calls it what, and which documents
// lead to it.
type Image struct {
	// ID is the digest of the configuration.
	ID digest.Digest `json:"id"`
	// Tags are full references, each with the digest that it had when pulled.
	Tags map[string]digest.Digest `json:"tags,omitempty"`
	// Digests are the REPOSITORY@DIGEST names under which it was pulled.
	Digests []string `json:"digests,omitempty"`
	// Targets are the ways from a digest to this image: one, as long as the
	// image was not pulled in different wrappings.
	Targets []Target `json:"targets"`
}

// Target is a document that a reference led to and the image manifest that
// was chosen from it, the same one where it was no index.
type Target struct {
	Root     ocispec.Descriptor `json:"root"`
	Manifest ocispec.Descriptor `json:"manifest"`
}

// Clone returns a copy that shares nothing with im.
func (im Image) Clone() Image {
	im.Tags = maps.Clone(im.Tags)
	im.Digests = slices.Clone(im.Digests)
	im.Targets = slices.Clone(im.Targets)
	return im
}

type imagesRecord struct {
	Version int     `json:"version"`
	Images  []Image `json:"images"`
}

// Images reads the record. An unreadable one is moved aside and reported as
// [ErrRecord], with no images.
func (s *Store) Images() ([]Image, error) {
	path := filepath.Join(s.root, imagesFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	var rec imagesRecord
	err = json.Unmarshal(data, &rec)
	if err == nil && rec.Version != imagesVersion {
		err = fmt.Errorf("version %d", rec.Version)
	}
	if err != nil {
		aside := path + ".bad-" + time.Now().UTC().Format("20060102T150405")
		return nil, errors.Join(fmt.Errorf("%w: %w (moved to %s)", ErrRecord, err, aside), os.Rename(path, aside))
	}
	rec.Images = slices.DeleteFunc(rec.Images, func(im Image) bool { return im.ID.Validate() != nil })
	return rec.Images, nil
}

// SetImages replaces the record, durably, and then the index that is made
// from it.
func (s *Store) SetImages(images []Image) error {
	data, err := json.MarshalIndent(imagesRecord{Version: imagesVersion, Images: images}, "", "\t")
	if err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(s.root, imagesFile), data, filePerm); err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	return s.writeIndex(images)
}

// writeIndex writes index.json. Losing it costs nothing but a look from
// outside, so it is not synced; the next change writes it anew.
func (s *Store) writeIndex(images []Image) error {
	index := ocispec.Index{
		Versioned: imagespec.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
	for _, im := range images {
		for _, t := range im.Targets {
			tagged := false
			for _, tag := range slices.Sorted(maps.Keys(im.Tags)) {
				if im.Tags[tag] == t.Root.Digest {
					d := t.Root
					d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
					index.Manifests = append(index.Manifests, d)
					tagged = true
				}
			}
			if !tagged {
				index.Manifests = append(index.Manifests, t.Root)
			}
		}
	}
	data, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := durable.ReplaceFile(filepath.Join(s.root, ocispec.ImageIndexFile), data, filePerm); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}
