package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// storage is a directory in the format of the distribution project's registry:
// content by digest, and for each repository links to its content. Writing it
// takes no registry.
type storage string

// manifest is an image or an index.
type manifest interface {
	Digest() (v1.Hash, error)
	RawManifest() ([]byte, error)
}

// add stores content with everything that it refers to under a name with a tag.
func (s storage) add(ref name.Tag, content manifest) error {
	repository := s.path("repositories", ref.RepositoryStr())
	if err := s.manifest(repository, content); err != nil {
		return err
	}
	digest, err := content.Digest()
	if err != nil {
		return err
	}
	tag := filepath.Join(repository, "_manifests", "tags", ref.TagStr())
	if err := link(filepath.Join(tag, "index", digest.Algorithm, digest.Hex), digest); err != nil {
		return err
	}
	return link(filepath.Join(tag, "current"), digest)
}

func (s storage) path(names ...string) string {
	return filepath.Join(append([]string{string(s), "docker", "registry", "v2"}, names...)...)
}

// manifest stores the content that a manifest refers to, and then the manifest.
func (s storage) manifest(repository string, content manifest) error {
	var err error
	switch content := content.(type) {
	case v1.ImageIndex:
		err = s.members(repository, content)
	case v1.Image:
		err = s.blobs(repository, content)
	}
	if err != nil {
		return err
	}

	raw, err := content.RawManifest()
	if err != nil {
		return err
	}

	digest, err := content.Digest()
	if err != nil {
		return err
	}

	if err := s.blob(digest, bytes.NewReader(raw)); err != nil {
		return err
	}
	return link(filepath.Join(repository, "_manifests", "revisions", digest.Algorithm, digest.Hex), digest)
}

// members stores the images of an index.
func (s storage) members(repository string, index v1.ImageIndex) error {
	list, err := index.IndexManifest()
	if err != nil {
		return err
	}

	for _, m := range list.Manifests {
		image, err := index.Image(m.Digest)
		if err != nil {
			return err
		}
		if err := s.manifest(repository, image); err != nil {
			return err
		}
	}

	return nil
}

// blobs stores the layers and the configuration of an image.
func (s storage) blobs(repository string, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}

	config, err := partial.ConfigLayer(image)
	if err != nil {
		return err
	}

	for _, l := range append(layers, config) {
		digest, err := l.Digest()
		if err != nil {
			return err
		}

		content, err := l.Compressed()
		if err != nil {
			return err
		}

		err = s.blob(digest, content)
		_ = content.Close() // it was read
		if err != nil {
			return err
		}

		if err := link(filepath.Join(repository, "_layers", digest.Algorithm, digest.Hex), digest); err != nil {
			return err
		}
	}

	return nil
}

// blob stores content unless it already exists.
func (s storage) blob(digest v1.Hash, content io.Reader) error {
	file := filepath.Join(s.path("blobs", digest.Algorithm, digest.Hex[:2], digest.Hex), "data")
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	data, err := io.ReadAll(content)
	if err != nil {
		return fmt.Errorf("pack %s: %w", digest, err)
	}
	return write(file, data)
}

// link writes the link of a repository to a digest.
func link(dir string, digest v1.Hash) error {
	return write(filepath.Join(dir, "link"), []byte(digest.String()))
}

func write(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}

// parseTag parses the name that a recipe gives to an image. The host is
// ignored: the registry stands in for many.
func parseTag(s string) (name.Tag, error) {
	if !strings.Contains(s, ":") {
		return name.Tag{}, fmt.Errorf("name image %q: want a tag", s)
	}
	return name.NewTag("registry.invalid/" + s)
}
