package image

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/registry"
)

// origin is where a pull gets an image from: a registry, or an archive. Documents are
// verified; blobs are not, their reader does that.
type origin interface {
	// Manifest writes the document that the image's name leads to, ManifestByDigest one
	// that an index lists, Config a configuration.
	Manifest(ctx context.Context, to registry.Document) (ocispec.Descriptor, error)
	ManifestByDigest(ctx context.Context, d digest.Digest, to registry.Document) (ocispec.Descriptor, error)
	Config(ctx context.Context, desc ocispec.Descriptor, to registry.Document) error
	// Blob streams a blob from an offset on, or from its start.
	Blob(ctx context.Context, desc ocispec.Descriptor, offset int64, tries *registry.Attempts) (blobStream, error)
}

// blobStream is a blob from the offset Start on.
type blobStream interface {
	io.ReadCloser
	Start() int64
}

// remote is a repository of a registry.
type remote struct{ *registry.Repository }

func (r remote) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64, tries *registry.Attempts) (blobStream, error) {
	b, err := r.Repository.Blob(ctx, desc, offset, tries)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return b, nil
}
