package main

import (
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// publish builds the image of a recipe, for an architecture, and stores it under
// all its names.
func publish(to storage, r recipe, arch string) error {
	image, err := r.image(arch)
	if err != nil {
		return fmt.Errorf("build %s: %w", r.names[0], err)
	}

	var content manifest = image
	if r.form != ociZstd {
		if content, err = r.index(image, arch); err != nil {
			return fmt.Errorf("build %s: %w", r.names[0], err)
		}
	}

	for _, n := range r.names {
		tag, err := parseTag(n)
		if err != nil {
			return err
		}
		if err := to.add(tag, content); err != nil {
			return fmt.Errorf("store %s: %w", n, err)
		}
	}

	return nil
}

// image packs the layers and the configuration.
func (r recipe) image(arch string) (v1.Image, error) {
	pack := compression.GZip
	if r.form == ociZstd {
		pack = compression.ZStd
	}

	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	if r.form == dockerList {
		image = mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	}

	for _, p := range r.layers {
		layer, err := p.layer(pack)
		if err != nil {
			return nil, err
		}

		history := v1.History{Created: v1.Time{Time: changed}, CreatedBy: "crisp hack/images"}
		add := mutate.Addendum{Layer: layer, History: history}
		if r.form == dockerList {
			add.MediaType = types.DockerLayer
		}

		if image, err = mutate.Append(image, add); err != nil {
			return nil, err
		}
	}

	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config, config.Created = "linux", arch, r.config, v1.Time{Time: changed}
	return mutate.ConfigFile(image, config)
}

// index lists the image among those of other platforms, which come first and
// cannot run here: a client that takes the first entry fails.
func (r recipe) index(image v1.Image, arch string) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	if r.form == dockerList {
		index = mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	}

	others := slices.DeleteFunc([]string{"amd64", "arm64", "s390x"}, func(a string) bool { return a == arch })
	for _, other := range others {
		foreign := r
		foreign.layers = []*part{marker("not-for-this-machine-" + other)}
		image, err := foreign.image(other)
		if err != nil {
			return nil, err
		}
		index = appendFor(index, image, other)
	}

	return appendFor(index, image, arch), nil
}

func appendFor(index v1.ImageIndex, image v1.Image, arch string) v1.ImageIndex {
	return mutate.AppendManifests(index, mutate.IndexAddendum{
		Add:        image,
		Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
	})
}
