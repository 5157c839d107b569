package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/registry"
)

const (
	// maxLayers is how many layers overlayfs can stack.
	maxLayers = 500
	// maxIndexDepth bounds the nesting of indexes.
	maxIndexDepth = 4

	dockerConfig = "application/vnd.docker.container.image.v1+json"
	dockerLayer  = "application/vnd.docker.image.rootfs."
	ociLayer     = "application/vnd.oci.image.layer."

	unknownPlatform = "unknown"
	// maxOffered is how many platforms an error lists.
	maxOffered = 20
)

// document is a manifest or an index; which of them is only known once it is
// parsed.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
	Signatures    json.RawMessage `json:"signatures"`

	isIndex  bool
	children []child              // of an index
	config   ocispec.Descriptor   // of a manifest
	layers   []ocispec.Descriptor // of a manifest
}

// parse parses a document that was received with the media type contentType. An
// ambiguous document is refused: another tool, such as a scanner, might have
// read it as the other kind (CVE-2021-41190).
func parse(data []byte, contentType string) (*document, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}

	if d.SchemaVersion == 1 || d.FSLayers != nil || d.Signatures != nil || strings.Contains(contentType, "distribution.manifest.v1") {
		return nil, fmt.Errorf("%w: Docker image manifest schema 1, which is obsolete: push the image again with a current tool", ErrUnsupported)
	}
	isManifest, isIndex := d.Config != nil || d.Layers != nil, d.Manifests != nil
	if isManifest == isIndex {
		return nil, fmt.Errorf("%w: document is not clearly either a manifest or an index", ErrInvalid)
	}

	var err error
	if d.MediaType, err = mediaType(d.MediaType, contentType, isIndex); err != nil {
		return nil, err
	}
	if err := d.decode(isIndex); err != nil {
		if errors.Is(err, ErrUnsupported) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}

	// The raw text is decoded now, and is not kept.
	d.Config, d.Layers, d.Manifests = nil, nil, nil
	d.isIndex = isIndex
	return &d, nil
}

// mediaType returns the media type of a document that declares own, "" for none,
// and was received as contentType. It refuses contradictions between the two and
// the document's structure.
func mediaType(own, contentType string, isIndex bool) (string, error) {
	manifests := []string{ocispec.MediaTypeImageManifest, registry.DockerManifest}
	indexes := []string{ocispec.MediaTypeImageIndex, registry.DockerManifestList}
	isKnown := func(t string) bool { return slices.Contains(manifests, t) || slices.Contains(indexes, t) }
	if own != "" && isKnown(contentType) && contentType != own {
		return "", fmt.Errorf("%w: document declares media type %q, but was received as %q", ErrInvalid, own, contentType)
	}

	kind, other := manifests, indexes
	if isIndex {
		kind, other = indexes, manifests
	}
	declared := own
	if declared == "" {
		declared = contentType
	}

	switch {
	case slices.Contains(other, declared):
		return "", fmt.Errorf("%w: document does not match its media type %q", ErrInvalid, declared)
	case slices.Contains(kind, declared):
		return declared, nil
	case own != "":
		return "", fmt.Errorf("%w: media type %q", ErrUnsupported, own)
	}
	return kind[0], nil // registries and proxies send all sorts of content types
}

// decode decodes the parts that the kind of document has.
func (d *document) decode(isIndex bool) error {
	if isIndex {
		return json.Unmarshal(d.Manifests, &d.children)
	}

	var m manifest
	if d.Config != nil {
		if err := json.Unmarshal(d.Config, &m.Config); err != nil {
			return err
		}
	}
	if d.Layers != nil {
		if err := json.Unmarshal(d.Layers, &m.Layers); err != nil {
			return err
		}
	}

	d.config = m.Config.oci()
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%w: %d layers, limit %d", ErrUnsupported, len(m.Layers), maxLayers)
	}

	for _, l := range m.Layers {
		d.layers = append(d.layers, l.oci())
	}
	return nil
}

// child is an image, or a further index, that an index lists.
type child struct {
	descriptor
	ArtifactType string `json:"artifactType"`
	Annotations  struct {
		Attestation string `json:"vnd.docker.reference.type"`
	} `json:"annotations"`
	Platform *platform `json:"platform"`
}

// choose picks the image in an index that fits this machine best.
func (d *document) choose(rank func(*platform) (int, bool)) (ocispec.Descriptor, error) {
	var best *child
	bestRank := math.MaxInt
	var offered []string
	for i := range d.children {
		c := &d.children[i]
		// Attestations about an image are listed next to it.
		if c.Annotations.Attestation != "" || isArtifact(c.ArtifactType) {
			continue
		}

		if p := c.Platform; p != nil && p.OS != unknownPlatform && len(offered) < maxOffered {
			offered = append(offered, truncate(p.String()))
		}
		if r, ok := rank(c.Platform); ok && r < bestRank {
			best, bestRank = c, r
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: no image for %s/%s, only for %s",
			ErrUnsupported, "linux", runtime.GOARCH, truncate(strings.Join(offered, ", ")))
	}

	if err := checkDescriptor(best.oci(), registry.MaxDocument); err != nil {
		return ocispec.Descriptor{}, err
	}
	return best.oci(), nil
}

// isArtifact reports whether an artifact type in an index denotes anything but
// an image. Some tools set the type of an image's configuration for images.
func isArtifact(t string) bool {
	return t != "" && t != ocispec.MediaTypeImageConfig && t != dockerConfig
}

// checkImage checks the descriptors of a manifest.
func (d *document) checkImage() error {
	switch d.config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	default:
		return fmt.Errorf("%w: not a container image: its configuration has media type %q", ErrUnsupported, truncate(d.config.MediaType))
	}

	if err := checkDescriptor(d.config, registry.MaxDocument); err != nil {
		return err
	}
	for _, l := range d.layers {
		if err := checkDescriptor(l, math.MaxInt64/2); err != nil {
			return err
		}
		known := strings.HasPrefix(l.MediaType, ociLayer) || strings.HasPrefix(l.MediaType, dockerLayer)
		if !known || strings.HasSuffix(l.MediaType, "+encrypted") {
			return fmt.Errorf("%w: layer with media type %q", ErrUnsupported, truncate(l.MediaType))
		}
	}

	return nil
}

func checkDescriptor(d ocispec.Descriptor, maxSize int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: digest %q: %w", ErrInvalid, truncate(string(d.Digest)), err)
	}
	if d.Size < 0 || d.Size > maxSize {
		return fmt.Errorf("%w: size of %s is %d bytes, limit %d", ErrInvalid, d.Digest, d.Size, maxSize)
	}
	return nil
}

// parseConfig parses an image's configuration and checks what a pull relies on.
func parseConfig(data []byte, layers int, rank func(*platform) (int, bool)) (ocispec.Image, error) {
	var c configuration
	if err := json.Unmarshal(data, &c); err != nil {
		return ocispec.Image{}, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}

	own := platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	// The variant is the choice of the index, or of whoever named this image.
	if _, ok := rank(&platform{OS: c.OS, Architecture: c.Architecture}); !ok {
		return ocispec.Image{}, fmt.Errorf("%w: image is for %s, this machine is linux/%s", ErrUnsupported, truncate(own.String()), runtime.GOARCH)
	}

	if n := len(c.RootFS.DiffIDs); n != layers {
		return ocispec.Image{}, fmt.Errorf("%w: configuration has %d layers, the manifest has %d", ErrInvalid, n, layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return ocispec.Image{}, fmt.Errorf("%w: diff ID %q", ErrInvalid, truncate(string(d)))
		}
	}

	return c.image(), c.check()
}

func truncate(s string) string {
	const limit = 200
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
