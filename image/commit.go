package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/store"
	"crisp/runtime/span"
)

const (
	// packMemory is what compressing a layer takes, in bytes.
	packMemory = 4 << 20
	// roomStep is after how many bytes the room on the disk is looked at again.
	roomStep = 64 << 20
	// maxComment bounds what a history says of a commit, in bytes.
	maxComment = 4 << 10
)

// CommitOptions are options of [Service.Commit].
type CommitOptions struct {
	// Name is that of the new image, a reference without a digest. An image that has it
	// loses it.
	Name string
	// Pin keeps the image from kubelet's garbage collection.
	Pin bool
	// By and Comment are what the image's history says of the commit, together at most
	// 4 KiB.
	By, Comment string
}

// check returns the name of the new image.
func (o CommitOptions) check() (registry.Reference, error) {
	ref, err := registry.ParseReference(o.Name)
	if err != nil {
		return ref, err
	}
	if ref.Digest != "" {
		return ref, fmt.Errorf("%w: %q has a digest, which an image gets from its content", ErrInvalidReference, truncate(o.Name))
	}
	if n := len(o.By) + len(o.Comment); n > maxComment {
		return ref, fmt.Errorf("%w: a comment of %d bytes, limit %d", ErrUnsupported, n, maxComment)
	}
	return ref, nil
}

// Commit makes an image of an image that is present, given by its ID, and of a layer on
// top of it, and returns once it is complete, like [Service.Pull]. changes writes the
// layer, a tar archive without compression, and reports whether it has any entries; if
// not, the image has the same layers. Only what changes wrote is copied: the layers
// below, however large, are shared.
func (s *Service) Commit(ctx context.Context, id string, o CommitOptions, changes func(ctx context.Context, to io.Writer) (bool, error)) (Image, error) {
	ref, err := o.check()
	if err != nil {
		return Image{}, fmt.Errorf("commit image: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	if !s.pulls.enter(&s.work) {
		return Image{}, ErrClosed
	}
	defer s.work.Done()

	var im Image
	err = span.Do(ctx, "commit", func(ctx context.Context) (err error) {
		im, err = s.commit(ctx, id, ref, o, changes)
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("commit image %q: %w", ref, err)
	}
	return im, nil
}

func (s *Service) commit(ctx context.Context, id string, ref registry.Reference, o CommitOptions, changes func(ctx context.Context, to io.Writer) (bool, error)) (Image, error) {
	base, err := s.take(id)
	if err != nil {
		return Image{}, err
	}
	defer s.giveBack(base)
	if n := len(base.chains); n >= maxLayers {
		return Image{}, fmt.Errorf("%w: the image has %d layers already", ErrUnsupported, n)
	}

	dir, err := os.MkdirTemp(s.blobs.TempDir(), "commit-*")
	if err != nil {
		return Image{}, err
	}
	defer func() { s.janitor.add(filepath.Base(dir)) }()
	c := commit{s: s, base: base, from: &source{archive: &archive{dir: dir, files: map[string]archived{}}, ref: ref}}

	if err := span.Do(ctx, "pack layer", func(ctx context.Context) error { return c.pack(ctx, changes) }); err != nil {
		return Image{}, err
	}
	if err := c.describe(ctx, o); err != nil {
		return Image{}, classify(err)
	}
	return s.fetch(ctx, &puller{s: s, from: c.from, ref: ref, pin: o.Pin})
}

// take finds an image, and keeps it from being removed until [Service.giveBack].
func (s *Service) take(ref string) (*stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.snapshot.Load().findUsable(ref)
	if err != nil {
		return nil, err
	}
	s.pin(im.blobs)
	s.pin(im.chains)
	return im, nil
}

func (s *Service) giveBack(im *stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpin(im.blobs)
	s.unpin(im.chains)
}

// commit is one commit: it puts together an archive of the new image without the
// layers that are present, which is then imported like any other.
type commit struct {
	s    *Service
	base *stored
	from *source
	// layer is the new layer, diff the digest of its archive; "" for none.
	layer ocispec.Descriptor
	diff  digest.Digest
}

// add adds a blob to the archive.
func (c *commit) add(f archived) { c.from.files[blobName(f.digest)] = f }

// pack compresses the new layer. Its archive exists compressed only: the container may
// be frozen meanwhile, and have changed more than there is room for twice.
func (c *commit) pack(ctx context.Context, changes func(ctx context.Context, to io.Writer) (bool, error)) error {
	release, err := c.s.budget.Work(ctx, packMemory)
	if err != nil {
		return err
	}
	defer release()

	path := filepath.Join(c.from.dir, "layer")
	w, err := newPacker(path)
	if err != nil {
		return err
	}
	changed, err := changes(ctx, w)
	if err = errors.Join(err, w.close()); err != nil || !changed {
		return err
	}
	c.diff = digest.NewDigest(digest.SHA256, w.sum)
	f := archived{path: path, size: w.file.size, digest: digest.NewDigest(digest.SHA256, w.file.sum)}
	c.layer.MediaType = ocispec.MediaTypeImageLayerGzip
	if w.size > unpackedLimit(f.size) {
		c.layer.MediaType = ocispec.MediaTypeImageLayer
		if f, err = loosen(ctx, f); err != nil {
			return err
		}
	}

	// Its files take about the same, next to the blob.
	left, err := room(c.from.dir)
	if err != nil {
		return err
	}
	if w.size+f.size > left {
		return noRoomFor(w.size + f.size)
	}
	c.layer.Digest, c.layer.Size = f.digest, f.size
	c.add(f)
	return nil
}

// loosen replaces a compressed layer by its archive: of one that is much larger, such
// as 5 GiB of zeros, nobody would unpack more than [unpackedLimit].
func loosen(ctx context.Context, f archived) (archived, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return archived{}, err
	}
	defer in.Close()
	plain, err := layer.Decompress(&interruptible{ctx, in})
	if err != nil {
		return archived{}, err
	}
	defer plain.Close()

	out := archived{path: f.path + ".tar"}
	w, err := newRoomy(out.path)
	if err != nil {
		return archived{}, err
	}
	_, err = io.CopyBuffer(w, struct{ io.Reader }{plain}, make([]byte, archiveBuf))
	if err = errors.Join(err, w.f.Close(), os.Remove(f.path)); err != nil {
		return archived{}, err
	}
	out.size, out.digest = w.size, digest.NewDigest(digest.SHA256, w.sum)
	return out, nil
}

// describe makes the configuration and the manifest of the new image.
func (c *commit) describe(ctx context.Context, o CommitOptions) error {
	at := slices.IndexFunc(c.base.record.Targets, func(t store.Target) bool { return t.Manifest.Digest == c.base.image.Manifest })
	if at < 0 {
		return fmt.Errorf("%w: the image has no manifest", ErrInvalid)
	}
	old, err := c.s.loadManifest(c.base.record.Targets[at].Manifest, c.base.record.ID)
	if err != nil {
		return err
	}

	doc := &spool{dir: c.s.blobs.TempDir()}
	defer doc.close()
	if err := c.s.readLocal(doc, c.base.config); err != nil {
		return fmt.Errorf("read configuration of the image: %w", err)
	}
	m := ocispec.Manifest{Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	now := time.Now().UTC()
	h := ocispec.History{Created: &now, CreatedBy: o.By, Comment: o.Comment, EmptyLayer: c.diff == ""}
	err = c.s.decoded(ctx, doc, func(data []byte) error {
		made, err := derive(data, c.diff, h)
		if err != nil {
			return err
		}
		f, err := c.from.keep(bytes.NewReader(made), 0, make([]byte, archiveBuf))
		if err == nil {
			c.add(f)
		}
		m.Config.Digest, m.Config.Size = f.digest, f.size
		return err
	})
	if err != nil {
		return err
	}

	for _, l := range old.Layers {
		desc := l.oci()
		desc.MediaType = ociType(desc.MediaType)
		m.Layers = append(m.Layers, desc)
	}
	if c.diff != "" {
		m.Layers = append(m.Layers, c.layer)
	}
	if c.from.made, err = json.Marshal(m); err != nil {
		return err
	}
	c.from.root = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(c.from.made), Size: int64(len(c.from.made))}
	return nil
}

// derive returns the configuration of an image with one more layer, or without one for
// an empty digest. What it does not know of the old one it keeps.
func derive(data []byte, diff digest.Digest, h ocispec.History) ([]byte, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	var old struct {
		RootFS  ocispec.RootFS    `json:"rootfs"`
		History []json.RawMessage `json:"history"`
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return nil, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}

	// A history has an entry for each layer, or tools refuse the image.
	layers := 0
	for _, raw := range old.History {
		var entry struct {
			Empty bool `json:"empty_layer"`
		}
		if err := json.Unmarshal(raw, &entry); err != nil {
			return nil, fmt.Errorf("%w: history: %w", ErrInvalid, err)
		}
		if !entry.Empty {
			layers++
		}
	}
	for ; layers < len(old.RootFS.DiffIDs); layers++ {
		old.History = append(old.History, json.RawMessage("{}"))
	}
	if diff != "" {
		old.RootFS.DiffIDs = append(old.RootFS.DiffIDs, diff)
	}

	// Without those that differ in case only, which a decoder takes for them.
	for name := range doc {
		if strings.EqualFold(name, "rootfs") || strings.EqualFold(name, "history") || strings.EqualFold(name, "created") {
			delete(doc, name)
		}
	}
	entry, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	for name, v := range map[string]any{"rootfs": old.RootFS, "history": append(old.History, entry), "created": h.Created} {
		if doc[name], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	return json.Marshal(doc)
}

// ociType is OCI's name for the media type of a layer, which may be Docker's: some
// tools refuse these in a manifest of OCI's.
func ociType(t string) string {
	rest, ok := strings.CutPrefix(t, dockerLayer)
	if !ok {
		return t
	}
	kind := ociLayer + "v1.tar"
	if foreign, ok := strings.CutPrefix(rest, "foreign."); ok {
		kind, rest = ociLayer+"nondistributable.v1.tar", foreign
	}
	if packed := strings.TrimPrefix(rest, "diff.tar."); packed != rest {
		return kind + "+" + packed
	}
	return kind
}

// packer compresses what is written to it, fast rather than thoroughly. zstd would be
// faster by a third, but not all tools read it.
type packer struct {
	file *roomy
	gzip *gzip.Writer
	sum  hash.Hash // of what was written, size bytes
	size int64
}

// newPacker makes the file of a packer.
func newPacker(path string) (*packer, error) {
	file, err := newRoomy(path)
	if err != nil {
		return nil, err
	}
	p := &packer{file: file, sum: sha256.New()}
	if p.gzip, err = gzip.NewWriterLevel(file, gzip.BestSpeed); err != nil {
		return nil, errors.Join(err, file.f.Close())
	}
	return p, nil
}

func (p *packer) Write(b []byte) (int, error) {
	n, err := p.gzip.Write(b)
	p.sum.Write(b[:n])
	p.size += int64(n)
	return n, err
}

func (p *packer) close() error { return errors.Join(p.gzip.Close(), p.file.f.Close()) }

// roomy is a new file that leaves room on the disk, with its digest.
type roomy struct {
	f    *os.File
	sum  hash.Hash
	size int64
	left int64 // until the next look at the disk
}

func newRoomy(path string) (*roomy, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return nil, err
	}
	return &roomy{f: f, sum: sha256.New()}, nil
}

func (r *roomy) Write(b []byte) (int, error) {
	if r.left -= int64(len(b)); r.left < 0 {
		got, err := room(filepath.Dir(r.f.Name()))
		if err != nil {
			return 0, err
		}
		if got < roomStep {
			return 0, noRoomFor(roomStep)
		}
		r.left = roomStep
	}
	n, err := r.f.Write(b)
	r.sum.Write(b[:n])
	r.size += int64(n)
	return n, err
}

// noRoomFor is the error of what does not fit on the disk, of a size in bytes.
func noRoomFor(size int64) error {
	return fmt.Errorf("%w: %d bytes more would leave less than %d%% of the disk free", unix.ENOSPC, size, 100/leastFree)
}
