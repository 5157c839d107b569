package criu

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"crisp/runtime/rootpath"
)

const (
	// maxImages bounds the files that images consist of, and maxDecoded what is decoded
	// of them, in bytes: memory, tmpfs and queues are not.
	maxImages  = 1 << 16
	maxDecoded = 128 << 20
	// maxEntry bounds one entry in bytes, and maxLarge those that have a list in them.
	maxEntry = 256 << 10
	maxLarge = 8 << 20

	// commonMagic begins all images but the inventory.
	commonMagic = 0x54564319
)

// imageDir reads the images in a directory, each once.
type imageDir struct {
	ctx context.Context // of one inspection
	dir *os.File
	// fifos are passed over.
	fifos bool
	// left are the images that were not read yet, by name, with their size in bytes.
	left    map[string]int64
	decoded int64
}

// openImages lists the images in a directory.
func openImages(ctx context.Context, path string) (*imageDir, error) {
	return openDir(ctx, path, false)
}

// openDumped opens the images of a dump that is under way.
func openDumped(ctx context.Context, path string) (*imageDir, error) {
	return openDir(ctx, path, true)
}

func openDir(ctx context.Context, path string, fifos bool) (*imageDir, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d := &imageDir{ctx: ctx, dir: dir, fifos: fifos, left: map[string]int64{}}
	if err := d.list(); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return d, nil
}

func (d *imageDir) list() error {
	entries, err := d.dir.ReadDir(maxImages + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(entries) > maxImages {
		return fmt.Errorf("%w: more than %d files", ErrImages, maxImages)
	}

	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		// The memory of a dump that is under way, see [PageSink].
		if d.fifos && info.Mode().Type() == fs.ModeNamedPipe {
			continue
		}
		// A link would lead CRIU to images of an earlier dump, or anywhere.
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %.100q is no regular file", ErrImages, e.Name())
		}
		d.left[e.Name()] = info.Size()
	}
	return nil
}

func (d *imageDir) close() { d.dir.Close() }

// has reports whether there is an image that was not read yet.
func (d *imageDir) has(name string) bool { _, ok := d.left[name]; return ok }

// names are those that were not read yet, in order.
func (d *imageDir) names() []string { return slices.Sorted(maps.Keys(d.left)) }

// take opens an image, which is read thereby.
func (d *imageDir) take(name string) (*os.File, int64, error) {
	size, ok := d.left[name]
	if !ok {
		return nil, 0, fmt.Errorf("%w: there is no %s", ErrImages, name)
	}
	delete(d.left, name)
	f, err := rootpath.OpenRegular(d.dir, name, size)
	return f, size, err
}

// read calls entry with each entry of an image that begins with a magic number. What
// entry returns is how many bytes follow that belong to it.
func read[M proto.Message](d *imageDir, name string, magic uint32, limit int, entry func(M) (int64, error)) error {
	f, _, err := d.take(name)
	if err != nil {
		return err
	}
	defer f.Close()

	r := newImageReader(d, f, limit)
	if err := r.begin(magic); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrImages, name, err)
	}
	var none M
	for {
		m := none.ProtoReflect().New().Interface().(M)
		err := r.next(m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrImages, name, err)
		}

		more, err := entry(m)
		if err == nil {
			err = r.skip(more)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// plainly makes an entry function of one whose entries have nothing behind them.
func plainly[M any](use func(M) error) func(M) (int64, error) {
	return func(m M) (int64, error) { return 0, use(m) }
}

// one reads an image with a single entry.
func one[M proto.Message](d *imageDir, name string, magic uint32, limit int) (m M, err error) {
	n := 0
	err = read(d, name, magic, limit, plainly(func(got M) error {
		m, n = got, n+1
		return nil
	}))
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: %s has %d entries and must have one", ErrImages, name, n)
	}
	return m, err
}

// imageReader reads one image.
type imageReader struct {
	d     *imageDir
	r     *bufio.Reader
	limit int
}

func newImageReader(d *imageDir, f *os.File, limit int) *imageReader {
	return &imageReader{d: d, r: bufio.NewReader(f), limit: limit}
}

// begin reads the magic numbers.
func (r *imageReader) begin(magic uint32) error {
	first, err := r.number()
	if err == nil && magic != magicInventory {
		if first != commonMagic {
			return fmt.Errorf("it begins with %#x, not %#x", first, commonMagic)
		}
		first, err = r.number()
	}
	if err != nil {
		return noEOF(err)
	}
	if first != magic {
		return fmt.Errorf("its magic number is %#x, not %#x", first, magic)
	}
	return nil
}

func (r *imageReader) number() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r.r, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

// noEOF is for an end in the middle.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next decodes the next entry, or returns io.EOF.
func (r *imageReader) next(m proto.Message) error {
	size, err := r.number()
	if err != nil {
		return err
	}
	if size > uint32(r.limit) {
		return fmt.Errorf("an entry of %d bytes, and the maximum is %d", size, r.limit)
	}
	if r.d.decoded += int64(size) + 16; r.d.decoded > maxDecoded {
		return fmt.Errorf("more than %d bytes to decode", maxDecoded)
	}

	text := make([]byte, size)
	if _, err := io.ReadFull(r.r, text); err != nil {
		return noEOF(err)
	}
	if err := countFields(text); err != nil {
		return err
	}
	if err := proto.Unmarshal(text, m); err != nil {
		return err
	}
	return checkKnown(m.ProtoReflect())
}

func (r *imageReader) skip(n int64) error {
	for n > 0 {
		step := min(n, 1<<30)
		if _, err := r.r.Discard(int(step)); err != nil {
			return fmt.Errorf("%w: %w", ErrImages, noEOF(err))
		}
		n -= step
	}
	return nil
}

// maxFields bounds the fields of an entry, each of which becomes a structure.
const maxFields = 1 << 17

func countFields(text []byte) error {
	for n := 0; len(text) > 0; n++ {
		if n == maxFields {
			return fmt.Errorf("an entry of more than %d fields", maxFields)
		}
		_, _, size := protowire.ConsumeField(text)
		if size < 0 {
			return protowire.ParseError(size)
		}
		text = text[size:]
	}
	return nil
}

// checkKnown refuses messages with fields that are not known here, but perhaps to the
// CRIU that is to restore them, unless they have the value that absent ones have.
func checkKnown(m protoreflect.Message) (err error) {
	if unknown := m.GetUnknown(); len(unknown) > 0 && !isZero(unknown) {
		return fmt.Errorf("%s has fields that this version of crisp does not know", m.Descriptor().FullName())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = checkKnown(v.List().Get(i).Message())
			}
		default:
			err = checkKnown(v.Message())
		}
		return err == nil
	})
	return err
}

func isZero(fields []byte) bool {
	for len(fields) > 0 {
		_, kind, n := protowire.ConsumeTag(fields)
		if n < 0 || kind != protowire.VarintType {
			return false
		}
		value, size := protowire.ConsumeVarint(fields[n:])
		if size < 0 || value != 0 {
			return false
		}
		fields = fields[n+size:]
	}
	return true
}
