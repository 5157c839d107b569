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
	// maxLayers is how many overlayfs stacks.
	maxLayers = 500
	// maxIndexDepth bounds indexes in indexes.
	maxIndexDepth = 4

	dockerConfig = "application/vnd.docker.container.image.v1+json"
	dockerLayer  = "application/vnd.docker.image.rootfs."
	ociLayer     = "application/vnd.oci.image.layer."

	unknownPlatform = "unknown"
	// maxOffered is how many platforms an error names.
	maxOffered = 20
)

// document is a manifest or an index: which, is not known before it is read.
type document struct {
	SchemaVersion int                `json:"schemaVersion"`
	MediaType     string             `json:"mediaType"`
	Config        json.RawMessage    `json:"config"`
	Layers        json.RawMessage    `json:"layers"`
	Manifests     json.RawMessage    `json:"manifests"`
	FSLayers      json.RawMessage    `json:"fsLayers"`
	Signatures    json.RawMessage    `json:"signatures"`
	entries       []entryDescriptor  // of an index
	config        ocispec.Descriptor // of a manifest
	layers        []ocispec.Descriptor
	isIndex       bool
}

// parse reads a document that came with the media type contentType. A document
// that could be taken for two things is refused: another tool might have
// looked at the other one.
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

	known := []string{ocispec.MediaTypeImageManifest, registry.DockerManifest, ocispec.MediaTypeImageIndex, registry.DockerManifestList}
	declared := contentType
	if d.MediaType != "" {
		if slices.Contains(known, contentType) && contentType != d.MediaType {
			return nil, fmt.Errorf("%w: document calls itself %q, the registry calls it %q", ErrInvalid, d.MediaType, contentType)
		}
		declared = d.MediaType
	}

	switch i := slices.Index(known, declared); {
	case i >= 2 && isManifest, i >= 0 && i < 2 && isIndex:
		return nil, fmt.Errorf("%w: document is not what its media type %q says", ErrInvalid, declared)
	case i < 0 && d.MediaType != "":
		return nil, fmt.Errorf("%w: media type %q", ErrUnsupported, d.MediaType)
	case i < 0 && isIndex:
		declared = ocispec.MediaTypeImageIndex
	case i < 0:
		declared = ocispec.MediaTypeImageManifest
	}

	d.MediaType = declared
	if err := d.decode(isIndex); err != nil {
		if errors.Is(err, ErrUnsupported) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}

	// What was decoded later is not needed any more.
	d.Config, d.Layers, d.isIndex = nil, nil, isIndex
	d.Manifests = nil
	return &d, nil
}

func (d *document) decode(isIndex bool) error {
	if isIndex {
		return json.Unmarshal(d.Manifests, &d.entries)
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

// entryDescriptor is what matters of an index's entry.
type entryDescriptor struct {
	descriptor
	ArtifactType string `json:"artifactType"`
	Annotations  struct {
		Attestation string `json:"vnd.docker.reference.type"`
	} `json:"annotations"`
	Platform *platform `json:"platform"`
}

// choose picks the entry of an index that runs here.
func (d *document) choose(rank func(*platform) (int, bool)) (ocispec.Descriptor, error) {
	var best *entryDescriptor
	bestRank := math.MaxInt
	var offered []string
	for i := range d.entries {
		e := &d.entries[i]
		// An annotation marks what is about an image rather than one.
		if e.Annotations.Attestation != "" || isArtifact(e.ArtifactType) {
			continue
		}

		if p := e.Platform; p != nil && p.OS != unknownPlatform && len(offered) < maxOffered {
			offered = append(offered, truncate(p.String()))
		}
		if r, ok := rank(e.Platform); ok && r < bestRank {
			best, bestRank = e, r
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

// isArtifact tells whether the artifact type of an index's entry is that of
// something else than an image. Some tools give an image's entry the type of
// its configuration.
func isArtifact(t string) bool {
	return t != "" && t != ocispec.MediaTypeImageConfig && t != dockerConfig
}

// checkImage checks a manifest's descriptors.
func (d *document) checkImage() error {
	switch d.config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	default:
		return fmt.Errorf("%w: not a container image: its configuration is of type %q", ErrUnsupported, truncate(d.config.MediaType))
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
			return fmt.Errorf("%w: layer of type %q", ErrUnsupported, truncate(l.MediaType))
		}
	}

	return nil
}

func checkDescriptor(d ocispec.Descriptor, maxSize int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: digest %q: %w", ErrInvalid, truncate(string(d.Digest)), err)
	}
	if d.Size < 0 || d.Size > maxSize {
		return fmt.Errorf("%w: %s has %d bytes", ErrInvalid, d.Digest, d.Size)
	}
	return nil
}

// parseConfig reads an image's configuration and checks what pulling relies on.
func parseConfig(data []byte, layers int, rank func(*platform) (int, bool)) (ocispec.Image, error) {
	var c configuration
	if err := json.Unmarshal(data, &c); err != nil {
		return ocispec.Image{}, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}

	own := platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	// Who named this image has chosen the variant.
	if _, ok := rank(&platform{OS: c.OS, Architecture: c.Architecture}); !ok {
		return ocispec.Image{}, fmt.Errorf("%w: image is for %s, this machine is linux/%s", ErrUnsupported, truncate(own.String()), runtime.GOARCH)
	}

	if n := len(c.RootFS.DiffIDs); n != layers {
		return ocispec.Image{}, fmt.Errorf("%w: configuration has %d layers, manifest %d", ErrInvalid, n, layers)
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
