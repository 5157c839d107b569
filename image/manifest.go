package image

import (
	"encoding/json"
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

	// attestationAnnotation marks what is about an image rather than one.
	attestationAnnotation = "vnd.docker.reference.type"
	unknownPlatform       = "unknown"
)

// document is a manifest or an index: which, is not known before it is read.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Config        json.RawMessage      `json:"config"`
	Layers        json.RawMessage      `json:"layers"`
	Manifests     json.RawMessage      `json:"manifests"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
	Signatures    json.RawMessage      `json:"signatures"`
	entries       []ocispec.Descriptor // of an index
	config        ocispec.Descriptor   // of a manifest
	layers        []ocispec.Descriptor
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
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	return &d, nil
}

func (d *document) decode(isIndex bool) error {
	if isIndex {
		return json.Unmarshal(d.Manifests, &d.entries)
	}
	if d.Config != nil {
		if err := json.Unmarshal(d.Config, &d.config); err != nil {
			return err
		}
	}
	if d.Layers == nil {
		return nil
	}
	return json.Unmarshal(d.Layers, &d.layers)
}

func (d *document) isIndex() bool { return d.Manifests != nil }

// choose picks the entry of an index that runs here.
func (d *document) choose() (ocispec.Descriptor, error) {
	var best *ocispec.Descriptor
	bestRank := math.MaxInt
	var offered []string
	for i := range d.entries {
		e := &d.entries[i]
		if e.Annotations[attestationAnnotation] != "" || isArtifact(e.ArtifactType) {
			continue
		}
		if p := e.Platform; p != nil && p.OS != unknownPlatform {
			offered = append(offered, platformName(*p))
		}
		if r, ok := rank(*e); ok && r < bestRank {
			best, bestRank = e, r
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: no image for %s/%s, only for %s",
			ErrUnsupported, "linux", runtime.GOARCH, truncate(strings.Join(offered, ", ")))
	}
	if err := checkDescriptor(*best, registry.MaxDocument); err != nil {
		return ocispec.Descriptor{}, err
	}
	return *best, nil
}

// isArtifact tells whether the artifact type of an index's entry is that of
// something else than an image. Some tools give an image's entry the type of
// its configuration.
func isArtifact(t string) bool {
	return t != "" && t != ocispec.MediaTypeImageConfig && t != dockerConfig
}

// rank orders the entries that run here, the best one lowest.
func rank(e ocispec.Descriptor) (int, bool) {
	const unnamed = 100 // says nothing about its platform
	p := e.Platform
	if p == nil || p.OS == "" && p.Architecture == "" {
		return unnamed, true
	}
	if p.OS != "linux" || p.Architecture != runtime.GOARCH {
		return 0, false
	}
	variants := map[string][]string{"amd64": {"", "v1"}, "arm64": {"v8", "", "v8.0"}}[runtime.GOARCH]
	i := slices.Index(variants, p.Variant)
	return i, i >= 0
}

func platformName(p ocispec.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
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
	if len(d.layers) > maxLayers {
		return fmt.Errorf("%w: %d layers, limit %d", ErrUnsupported, len(d.layers), maxLayers)
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
func parseConfig(data []byte, layers int) (ocispec.Image, error) {
	var im ocispec.Image
	if err := json.Unmarshal(data, &im); err != nil {
		return im, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	if im.OS != "" && im.OS != "linux" || im.Architecture != "" && im.Architecture != runtime.GOARCH {
		return im, fmt.Errorf("%w: image is for %s, this machine is linux/%s",
			ErrUnsupported, truncate(platformName(im.Platform)), runtime.GOARCH)
	}
	if n := len(im.RootFS.DiffIDs); n != layers {
		return im, fmt.Errorf("%w: configuration has %d layers, manifest %d", ErrInvalid, n, layers)
	}
	for _, d := range im.RootFS.DiffIDs {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return im, fmt.Errorf("%w: diff ID %q", ErrInvalid, truncate(string(d)))
		}
	}
	return im, nil
}

func truncate(s string) string {
	const limit = 200
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
