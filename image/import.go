package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/runtime/span"
)

const (
	// maxArchiveIndex bounds the list of an archive's images, in bytes, maxArchiveImages
	// their number.
	maxArchiveIndex  = 4 << 20
	maxArchiveImages = 1_000

	// maxName bounds the name of an image, in bytes: an error quotes it.
	maxName = 1 << 10

	// containerdName is the annotation in which containerd and docker have an image's
	// full name. OCI's own may be a tag only.
	containerdName = "io.containerd.image.name"

	ociIndexName, ociLayoutName, dockerManifestName = "index.json", ocispec.ImageLayoutFile, "manifest.json"
)

// ImportOptions are options of [Service.Import].
type ImportOptions struct {
	// Name is that of the image, if the archive has one image without a name; "" for
	// none.
	Name string
	// Pin keeps the images from kubelet's garbage collection: where there is no
	// registry, nothing brings them back.
	Pin bool
}

// Imported is an image that was imported under a name.
type Imported struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// Import adds the images of an archive: an OCI layout, or what docker save writes, as a
// tar file without compression, with gzip or with zstd. They are what a pull of them
// would have made, and are verified as that would have. What is imported if the archive
// turns out to be damaged, stays.
func (s *Service) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Imported, error) {
	if o.Name != "" {
		if _, err := registry.ParseReference(o.Name); err != nil {
			return nil, fmt.Errorf("import images: %w", err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	if !s.pulls.enter(&s.work) {
		return nil, ErrClosed
	}
	defer s.work.Done()

	var done []Imported
	err := span.Do(ctx, "import", func(ctx context.Context) (err error) {
		done, err = s.importAll(ctx, r, o)
		return err
	})
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return done, fmt.Errorf("import images: %w", classify(err))
	}
	return done, nil
}

func (s *Service) importAll(ctx context.Context, r io.Reader, o ImportOptions) ([]Imported, error) {
	a, err := readArchive(ctx, r, s.blobs.TempDir())
	if a != nil {
		defer func() { s.janitor.add(filepath.Base(a.dir)) }()
	}
	if err != nil {
		return nil, err
	}

	list, err := s.imagesOf(ctx, a, o.Name)
	if err != nil {
		return nil, err
	}
	var done []Imported
	var errs []error
	for _, im := range list {
		got, err := s.fetch(ctx, &puller{s: s, from: &source{archive: a, root: im.root, made: im.made, ref: im.ref}, ref: im.ref, pin: o.Pin})
		if err != nil {
			errs = append(errs, fmt.Errorf("image %q: %w", im.ref, err))
			continue
		}
		done = append(done, Imported{im.ref.String(), got.ID})
	}
	return done, errors.Join(errs...)
}

// named is an image of an archive under one of its names.
type named struct {
	ref  registry.Reference
	root ocispec.Descriptor
	// made is the manifest, if the archive has none.
	made []byte
}

// imagesOf lists the images of an archive, each under all its names.
func (s *Service) imagesOf(ctx context.Context, a *archive, name string) (list []named, err error) {
	index, isOCI := a.files[ociIndexName]
	_, isLayout := a.files[ociLayoutName]
	old, isDocker := a.files[dockerManifestName]
	switch {
	case isOCI && isLayout:
		err = s.document(ctx, index, ociIndexName, func(data []byte) error {
			list, err = ociImages(data, name)
			return err
		})
	case isDocker:
		err = s.document(ctx, old, dockerManifestName, func(data []byte) error {
			list, err = a.dockerImages(data, name)
			return err
		})
	default:
		err = fmt.Errorf("%w: neither an OCI layout (%s and %s) nor an archive of docker save (%s)", ErrUnsupported, ociIndexName, ociLayoutName, dockerManifestName)
	}

	switch {
	case err != nil:
		return nil, err
	case len(list) == 0:
		return nil, fmt.Errorf("%w: archive has no images", ErrInvalid)
	case len(list) > maxArchiveImages:
		return nil, fmt.Errorf("%w: archive has %d names of images, limit %d", ErrInvalid, len(list), maxArchiveImages)
	}
	return list, nil
}

// ociImages lists the images of an OCI layout.
func ociImages(data []byte, name string) ([]named, error) {
	var index struct {
		Manifests []struct {
			descriptor
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, ociIndexName, err)
	}

	var list []named
	for _, m := range index.Manifests {
		text := m.Annotations[containerdName]
		if of := m.Annotations[ocispec.AnnotationRefName]; text == "" && strings.ContainsAny(of, "/:@") {
			text = of // else it is a tag only
		}
		ref, err := nameOf(text, name, len(index.Manifests))
		if err != nil {
			return nil, err
		}
		if err := checkDescriptor(m.oci(), registry.MaxDocument); err != nil {
			return nil, err
		}
		list = append(list, named{ref: ref, root: m.oci()})
	}
	return list, nil
}

// nameOf is the name of an image: its own, or else the one that was asked for, if it is
// the only one.
func nameOf(own, asked string, images int) (registry.Reference, error) {
	switch {
	case len(own) > maxName:
		return registry.Reference{}, fmt.Errorf("%w: a name in the archive has %d bytes, limit %d", ErrInvalidReference, len(own), maxName)
	case own != "":
		return registry.ParseReference(own)
	case asked != "" && images == 1:
		return registry.ParseReference(asked)
	case images > 1:
		return registry.Reference{}, fmt.Errorf("%w: an image in the archive has no name, and there are others: save it with its name", ErrInvalidReference)
	}
	return registry.Reference{}, fmt.Errorf("%w: the image in the archive has no name: give it one (--name)", ErrInvalidReference)
}

// dockerImages lists the images of docker save, and makes the manifests that they lack.
func (a *archive) dockerImages(data []byte, name string) ([]named, error) {
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, dockerManifestName, err)
	}

	if len(images) > maxArchiveImages { // each gets a manifest
		return nil, fmt.Errorf("%w: archive has %d images, limit %d", ErrInvalid, len(images), maxArchiveImages)
	}

	a.docker = map[digest.Digest]archived{}
	var list []named
	for _, im := range images {
		if len(im.Layers) > maxLayers {
			return nil, fmt.Errorf("%w: %d layers, limit %d", ErrUnsupported, len(im.Layers), maxLayers)
		}
		config, err := a.described(im.Config, func(archived) (string, error) { return ocispec.MediaTypeImageConfig, nil })
		if err != nil {
			return nil, err
		}
		m := ocispec.Manifest{Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{}}
		for _, l := range im.Layers {
			desc, err := a.described(l, layerType)
			if err != nil {
				return nil, err
			}
			m.Layers = append(m.Layers, desc)
		}

		made, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		root := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(made), Size: int64(len(made))}
		if len(im.RepoTags) == 0 {
			im.RepoTags = []string{""}
		}
		for _, tag := range im.RepoTags {
			ref, err := nameOf(tag, name, len(images))
			if err != nil {
				return nil, err
			}
			list = append(list, named{ref: ref, root: root, made: made})
		}
	}
	return list, nil
}

// described describes a file that manifest.json refers to.
func (a *archive) described(name string, kind func(archived) (string, error)) (ocispec.Descriptor, error) {
	f, ok := a.files[path.Clean(name)]
	if !ok {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %s refers to %q, which is no regular file of the archive", ErrInvalid, dockerManifestName, truncate(name))
	}
	a.docker[f.digest] = f
	media, err := kind(f)
	return ocispec.Descriptor{MediaType: media, Digest: f.digest, Size: f.size}, err
}

// layerType is the media type of a layer, by its first bytes.
func layerType(f archived) (string, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	head := make([]byte, layer.HeadSize)
	n, err := io.ReadFull(in, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	return layer.MediaType(head[:n]), nil
}

// source is an image of an archive as the origin of a pull.
type source struct {
	*archive
	root ocispec.Descriptor
	made []byte
	ref  registry.Reference
}

// Manifest implements origin.
func (s *source) Manifest(ctx context.Context, to registry.Document) (ocispec.Descriptor, error) {
	if s.ref.Digest != "" && s.ref.Digest != s.root.Digest {
		return ocispec.Descriptor{}, fmt.Errorf("%w: the archive has %s under this name", ErrInvalid, s.root.Digest)
	}
	if s.made != nil {
		_, err := to.Write(s.made)
		return s.root, err
	}
	return s.root, s.copyTo(ctx, s.root, to)
}

// ManifestByDigest implements origin.
func (s *source) ManifestByDigest(ctx context.Context, d digest.Digest, to registry.Document) (ocispec.Descriptor, error) {
	f, err := s.blob(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{Digest: d, Size: f.size}
	return desc, s.copyTo(ctx, desc, to)
}

// Config implements origin.
func (s *source) Config(ctx context.Context, desc ocispec.Descriptor, to registry.Document) error {
	return s.copyTo(ctx, desc, to)
}

// copyTo copies a document and verifies it.
func (s *source) copyTo(ctx context.Context, desc ocispec.Descriptor, to registry.Document) error {
	f, err := s.blob(desc.Digest)
	if err != nil {
		return err
	}
	if f.size != desc.Size || desc.Size > registry.MaxDocument {
		return fmt.Errorf("%w: %s has %d bytes, want %d, limit %d", ErrInvalid, desc.Digest, f.size, desc.Size, registry.MaxDocument)
	}
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer in.Close()

	to.Reset()
	sum := desc.Digest.Algorithm().Digester()
	if _, err := io.Copy(io.MultiWriter(to, sum.Hash()), &interruptible{ctx, in}); err != nil {
		return err
	}
	if got := sum.Digest(); got != desc.Digest {
		return fmt.Errorf("%w: document %s has digest %s", ErrInvalid, desc.Digest, got)
	}
	return nil
}

// Blob implements origin.
func (s *source) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64, _ *registry.Attempts) (blobStream, error) {
	f, err := s.blob(desc.Digest)
	if err != nil {
		return nil, err
	}
	in, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	if _, err := in.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return &fileStream{interruptible{ctx, in}, in, offset}, nil
}

// fileStream is a file from an offset on.
type fileStream struct {
	interruptible
	io.Closer
	start int64
}

// Start implements blobStream.
func (f *fileStream) Start() int64 { return f.start }
