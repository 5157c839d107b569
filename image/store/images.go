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
	imagesFile = "images.json"
	// recentFile is the record as of the last change, written without a sync. Its
	// content is undefined after a power cut.
	recentFile    = "images.recent.json"
	imagesVersion = 1
)

// Image is the record of one image: its names, and the documents that lead to it.
type Image struct {
	// ID is the digest of the configuration.
	ID digest.Digest `json:"id"`
	// Tags are full references, each with the digest that it had when pulled.
	Tags map[string]digest.Digest `json:"tags,omitempty"`
	// Digests are the REPOSITORY@DIGEST names under which it was pulled.
	Digests []string `json:"digests,omitempty"`
	// Pinned means that kubelet must not remove the image, whatever it is called.
	Pinned bool `json:"pinned,omitempty"`
	// Unsynced is the ID of the boot in which blobs of the image were written,
	// until they are known to be on disk. In another boot they may be torn.
	Unsynced string `json:"unsynced,omitempty"`
	// Targets lead from a digest to this image. There is more than one if the
	// image was pulled through different manifests or indexes.
	Targets []Target `json:"targets"`
}

// Target is a document that a reference led to, and the image manifest that was
// chosen from it: the same document unless it is an index.
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
	Version int `json:"version"`
	// Serial increases with every change, across both files.
	Serial uint64  `json:"serial"`
	Images []Image `json:"images"`
}

// Images reads the record, from the more recent of its two files. If the durable
// one is unreadable, it is moved aside and reported as [ErrRecord].
func (s *Store) Images() ([]Image, error) {
	path := filepath.Join(s.root, imagesFile)
	rec, err := readImages(path)
	if errors.Is(err, ErrRecord) {
		aside := path + ".bad-" + time.Now().UTC().Format("20060102T150405")
		err = errors.Join(fmt.Errorf("%w (moved to %s)", err, aside), os.Rename(path, aside))
	}

	// The recent file may well be unreadable after a power cut, and is ignored
	// then. It does not replace an unreadable durable one: it may be older.
	recent, rerr := readImages(filepath.Join(s.root, recentFile))
	if rerr == nil && recent.Serial > rec.Serial {
		s.serial, rec = recent.Serial, recent
	} else {
		s.serial = rec.Serial
	}

	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rec.Images, func(im Image) bool { return im.ID.Validate() != nil }), nil
}

func readImages(path string) (imagesRecord, error) {
	var rec imagesRecord
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("read images: %w", err)
	}

	err = json.Unmarshal(data, &rec)
	if err == nil && rec.Version != imagesVersion {
		err = fmt.Errorf("version %d", rec.Version)
	}
	if err != nil {
		return imagesRecord{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}

	return rec, nil
}

// SetImages replaces the record, and then the index that is derived from it. It
// waits for the disk if the record is to be durable; otherwise the record
// survives this process, but not necessarily a power cut. Calls must not overlap.
func (s *Store) SetImages(images []Image, durably bool) error {
	name, write := recentFile, durable.ReplaceFile
	if durably {
		name, write = imagesFile, durable.WriteFile
	}

	data, err := json.MarshalIndent(imagesRecord{Version: imagesVersion, Serial: s.serial + 1, Images: images}, "", "\t")
	if err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	if err := write(filepath.Join(s.root, name), data, filePerm); err != nil {
		return fmt.Errorf("write images: %w", err)
	}

	s.serial++
	return s.writeIndex(images)
}

// writeIndex writes index.json. Only other tools read it, so it is not synced; the
// next change rewrites it.
func (s *Store) writeIndex(images []Image) error {
	index := ocispec.Index{
		Versioned: imagespec.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}

	for _, im := range images {
		for _, t := range im.Targets {
			index.Manifests = append(index.Manifests, indexEntries(t.Root, im.Tags)...)
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

// indexEntries lists a document in an index: once for each of its tags, or once
// without any.
func indexEntries(root ocispec.Descriptor, tags map[string]digest.Digest) (list []ocispec.Descriptor) {
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		if tags[tag] != root.Digest {
			continue
		}
		d := root
		d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		list = append(list, d)
	}

	if len(list) == 0 {
		return []ocispec.Descriptor{root}
	}
	return list
}
