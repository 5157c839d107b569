package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	imagespecs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// Annotation is that of an image's manifest which says that the image is a checkpoint,
// and of which container: https://kubernetes.io/blog/2022/12/05/forensic-container-checkpointing-alpha
// has the name that CRI-O used before.
const Annotation = "org.criu.checkpoint.container.name"

// WriteImage writes an image that has a checkpoint as its only layer, as an OCI layout in
// a tar archive. archive is that of [Stage.Write], read from where it stands.
func WriteImage(to io.Writer, archive *os.File, container string) error {
	if err := writeImage(to, archive, container); err != nil {
		return fmt.Errorf("write image of a checkpoint: %w", err)
	}
	return nil
}

func writeImage(to io.Writer, archive *os.File, container string) error {
	info, err := archive.Stat()
	if err != nil {
		return err
	}
	whole := io.NewSectionReader(archive, 0, info.Size())
	sum, err := digest.FromReader(whole)
	if err != nil {
		return err
	}

	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{sum}},
	})
	if err != nil {
		return err
	}
	annotations := map[string]string{Annotation: container}
	text, err := json.Marshal(ocispec.Manifest{
		Versioned: imagespecs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: annotations,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: sum, Size: info.Size()}},
	})
	if err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: imagespecs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(text), Size: int64(len(text)), Annotations: annotations}},
	})
	if err != nil {
		return err
	}

	w := tar.NewWriter(to)
	add := func(name string, size int64, content io.Reader) {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
		}
		if err == nil {
			_, err = io.CopyN(w, content, size)
		}
	}
	blob := func(text []byte) {
		add("blobs/sha256/"+digest.FromBytes(text).Encoded(), int64(len(text)), bytes.NewReader(text))
	}
	layout := []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
	add(ocispec.ImageLayoutFile, int64(len(layout)), bytes.NewReader(layout))
	add(ocispec.ImageIndexFile, int64(len(index)), bytes.NewReader(index))
	blob(config)
	blob(text)
	add("blobs/sha256/"+sum.Encoded(), info.Size(), io.NewSectionReader(archive, 0, info.Size()))
	return errors.Join(err, w.Close())
}

// Pack writes an archive of what is in a directory, such as the files of an image that is
// a checkpoint. Nobody has to trust the directory: what is neither a regular file nor
// CRIU's directory is [ErrInvalid].
func Pack(ctx context.Context, dir *os.File, to io.Writer) error {
	w := tar.NewWriter(&writer{ctx, to})
	for _, below := range []string{".", ImagesDir} {
		names, err := namesIn(dir, below)
		if err != nil {
			return fmt.Errorf("pack a checkpoint: %w", err)
		}
		for _, name := range names {
			if err := packFile(w, dir, name); err != nil {
				return fmt.Errorf("pack a checkpoint: %.200q: %w", name, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack a checkpoint: %w", err)
	}
	return nil
}

// namesIn lists the files in a directory, with its own name, but for CRIU's.
func namesIn(dir *os.File, below string) (list []string, err error) {
	d, err := rootpath.OpenUnlinked(dir, below, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has no %s", ErrInvalid, below)
	}
	if err != nil {
		return nil, unlinked(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("%w: more than %d files", ErrTooLarge, maxFiles)
	}

	slices.Sort(names)
	for _, name := range names {
		switch {
		case below != ".":
			list = append(list, below+"/"+name)
		case name != ImagesDir:
			list = append(list, name)
		}
	}
	return list, nil
}

// unlinked marks what is a link, or a socket.
func unlinked(err error) error {
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: it is a link or a socket: %w", ErrInvalid, err)
	}
	return err
}

func packFile(w *tar.Writer, dir *os.File, name string) error {
	f, err := rootpath.OpenUnlinked(dir, name, os.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return unlinked(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no regular file", ErrInvalid)
	}

	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.CopyN(w, f, info.Size())
	return err
}
