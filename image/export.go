package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/registry"
	"crisp/image/store"
)

// Export writes images to a tar file that [Service.Import], containerd, podman and
// docker can read: an OCI layout, with the manifest.json of docker save. References that
// name an image by a tag or digest export that name, IDs export all names. Only what
// this machine's platform needs is in it.
func (s *Service) Export(ctx context.Context, refs []string, w io.Writer) error {
	e := &export{s: s, tar: tar.NewWriter(w), blobs: map[digest.Digest]ocispec.Descriptor{}, docker: map[digest.Digest]*dockerImage{}}
	if err := e.survey(ctx, refs); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	defer e.giveBack()
	if err := e.write(ctx); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return nil
}

// export is one run of [Service.Export].
type export struct {
	s      *Service
	tar    *tar.Writer
	index  ocispec.Index
	docker map[digest.Digest]*dockerImage // by ID
	blobs  map[digest.Digest]ocispec.Descriptor
	taken  []*stored
}

// dockerImage is an image in manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// survey lists what is to be written, and keeps it from being removed.
func (e *export) survey(ctx context.Context, refs []string) error {
	e.index = ocispec.Index{Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for _, ref := range refs {
		im, err := e.s.take(ref)
		if err == nil {
			e.taken = append(e.taken, im)
			err = e.add(ctx, im, ref)
		}
		if err != nil {
			e.giveBack()
			return err
		}
	}
	return nil
}

func (e *export) giveBack() {
	for _, im := range e.taken {
		e.s.giveBack(im)
	}
	e.taken = nil
}

// add adds an image under the names that a reference selects.
func (e *export) add(ctx context.Context, im *stored, ref string) error {
	names := slices.Concat(slices.Sorted(maps.Keys(im.record.Tags)), im.record.Digests)
	if parsed, err := registry.ParseReference(ref); err == nil && slices.Contains(names, parsed.String()) {
		names = []string{parsed.String()}
	}
	for _, name := range names {
		if err := e.addName(ctx, im, name); err != nil {
			return err
		}
	}
	return nil
}

// addName adds an image under one name, with what that leads to.
func (e *export) addName(ctx context.Context, im *stored, name string) error {
	root, byTag := im.record.Tags[name]
	if !byTag {
		_, text, _ := strings.Cut(name, "@")
		root = digest.Digest(text)
	}
	at := slices.IndexFunc(im.record.Targets, func(t store.Target) bool { return t.Root.Digest == root })
	if at < 0 {
		return nil // of a target that was damaged and dropped
	}
	t := im.record.Targets[at]
	if slices.ContainsFunc(e.index.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[containerdName] == name }) {
		return nil // selected twice
	}

	direct, err := e.lists(ctx, t.Root, t.Manifest)
	if err != nil {
		return err
	}
	entry := t.Root
	if !direct {
		if !byTag {
			return nil // the name is that of the index
		}
		entry = t.Manifest
	}
	e.blobs[entry.Digest], e.blobs[t.Manifest.Digest] = entry, t.Manifest
	entry.Annotations = map[string]string{containerdName: name, ocispec.AnnotationRefName: name}
	e.index.Manifests = append(e.index.Manifests, entry)
	m, err := e.s.loadManifest(t.Manifest, im.record.ID)
	if err != nil {
		return err
	}

	one := e.docker[im.record.ID]
	if one == nil {
		one = &dockerImage{Config: blobName(im.record.ID), Layers: []string{}}
		for _, l := range m.Layers {
			one.Layers = append(one.Layers, blobName(l.Digest))
		}
		e.docker[im.record.ID] = one
	}
	if byTag {
		one.RepoTags = append(one.RepoTags, name)
	}
	for _, d := range append([]descriptor{m.Config}, m.Layers...) {
		e.blobs[d.Digest] = d.oci()
	}
	return nil
}

// lists reports whether a document is the manifest that was chosen, or an index that
// lists it. Of nested indexes those in the middle are not kept.
func (e *export) lists(ctx context.Context, root, manifest ocispec.Descriptor) (bool, error) {
	if root.Digest == manifest.Digest {
		return true, nil
	}
	doc := &spool{dir: e.s.blobs.TempDir()}
	defer doc.close()
	if err := e.s.readLocal(doc, root); err != nil {
		return false, err
	}

	found := false
	err := e.s.decoded(ctx, doc, func(data []byte) error {
		parsed, err := parse(data, root.MediaType)
		found = err == nil && slices.ContainsFunc(parsed.children, func(c child) bool { return c.Digest == manifest.Digest })
		return err
	})
	return found, err
}

// write writes the archive: what describes it first.
func (e *export) write(ctx context.Context) error {
	docker := []*dockerImage{}
	for _, id := range slices.Sorted(maps.Keys(e.docker)) {
		docker = append(docker, e.docker[id])
	}
	for _, doc := range []struct {
		name string
		v    any
	}{
		{ociLayoutName, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {ociIndexName, e.index}, {dockerManifestName, docker},
	} {
		data, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if err := e.entry(doc.name, int64(len(data))); err != nil {
			return err
		}
		if _, err := e.tar.Write(data); err != nil {
			return err
		}
	}

	for _, d := range slices.Sorted(maps.Keys(e.blobs)) {
		if err := e.blob(ctx, e.blobs[d]); err != nil {
			return err
		}
	}
	return e.tar.Close()
}

func blobName(d digest.Digest) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded())
}

// entry begins a file. The archive of the same images is always the same.
func (e *export) entry(name string, size int64) error {
	return e.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
}

// blob writes a blob, which is verified on the way.
func (e *export) blob(ctx context.Context, desc ocispec.Descriptor) error {
	r, err := e.s.blobs.Reader(desc)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := e.entry(blobName(desc.Digest), desc.Size); err != nil {
		return err
	}
	n, err := io.Copy(e.tar, &interruptible{ctx, r})
	if err == nil && n != desc.Size {
		err = fmt.Errorf("%w: %s has %d bytes, want %d", ErrInvalid, desc.Digest, n, desc.Size)
	}
	if errors.Is(err, tar.ErrWriteTooLong) {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrInvalid, desc.Digest, desc.Size)
	}
	return err
}
