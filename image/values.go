package image

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/runtime/untrusted"
)

const (
	// maxValues bounds the values in a document. The largest documents in use have a
	// few thousand.
	maxValues = 1 << 16
	// maxKept bounds the part of a configuration that stays in memory with the
	// image: command, environment, volumes and the like, in bytes.
	maxKept = 256 << 10
)

// countValues counts the potential values in a JSON text, which must not be more
// than [maxValues].
func countValues(r io.Reader) (int, error) {
	n, err := untrusted.CountValues(r, maxValues)
	if errors.Is(err, untrusted.ErrValues) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return n, err
}

// decodeStored decodes a document from the store; a pull has decoded and
// checked it before.
func (s *Service) decodeStored(desc ocispec.Descriptor, limit int64, v any) error {
	data, err := s.blobs.ReadAll(desc, limit)
	if err != nil {
		return err
	}
	if _, err := countValues(bytes.NewReader(data)); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, desc.Digest, err)
	}
	return nil
}

// manifest is the part of an image manifest that is used here.
type manifest struct {
	Config descriptor   `json:"config"`
	Layers []descriptor `json:"layers"`
	// Annotations are those that say of which container the image is a checkpoint, by the
	// name that there is for it now, and that of CRI-O before.
	Annotations struct {
		Checkpoint string `json:"org.criu.checkpoint.container.name"`
		Former     string `json:"io.kubernetes.cri-o.annotations.checkpoint.name"`
	} `json:"annotations"`
}

// maxContainer bounds the name of a container, in bytes.
const maxContainer = 253

// checkpoint is the container of which an image is a checkpoint, "" if it is none.
func (m *manifest) checkpoint() string {
	name := cmp.Or(m.Annotations.Checkpoint, m.Annotations.Former)
	return strings.Clone(name[:min(len(name), maxContainer)])
}

// descriptor is an OCI descriptor without annotations and URLs.
type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

func (d descriptor) oci() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// configuration is the part of an image's configuration that is used here.
// History, labels and the rest are hostile, of any length, and not needed.
type configuration struct {
	ocispec.Platform
	Config struct {
		User       string
		Env        []string
		Entrypoint words
		Cmd        words
		Volumes    map[string]struct{}
		WorkingDir string
		StopSignal string
	} `json:"config"`
	RootFS ocispec.RootFS `json:"rootfs"`
}

// words are the words of a command, which old tools wrote as one string.
type words []string

// UnmarshalJSON reads a list, or a single string as a list of one.
func (w *words) UnmarshalJSON(data []byte) error {
	var one string
	if len(data) > 0 && data[0] == '"' {
		err := json.Unmarshal(data, &one)
		*w = words{one}
		return err
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// image converts the configuration to the OCI type.
func (c *configuration) image() ocispec.Image {
	return ocispec.Image{
		Platform: c.Platform,
		Config: ocispec.ImageConfig{
			User: c.Config.User, Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd,
			Volumes: c.Config.Volumes, WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal,
		},
		RootFS: c.RootFS,
	}
}

// check bounds the memory that a configuration occupies.
func (c *configuration) check() error {
	const header = 24 // of a string or slice, about
	size := 0
	for _, s := range []string{c.OS, c.Architecture, c.Variant, c.OSVersion, c.RootFS.Type,
		c.Config.User, c.Config.WorkingDir, c.Config.StopSignal} {
		size += len(s)
	}

	for _, list := range [][]string{c.OSFeatures, c.Config.Env, c.Config.Entrypoint, c.Config.Cmd} {
		for _, s := range list {
			size += len(s) + header
		}
	}

	for path := range c.Config.Volumes {
		size += len(path) + header
	}
	if size > maxKept {
		return fmt.Errorf("%w: command, environment and volumes of the image have %d bytes, limit %d", ErrInvalid, size, maxKept)
	}
	return nil
}
