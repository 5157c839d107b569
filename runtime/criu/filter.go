package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"google.golang.org/protobuf/proto"

	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

const (
	filterImage = "seccomp.img"
	// maxFilters bounds the image of all filters, in bytes: thousands of the longest.
	maxFilters = 64 << 20
	// imageHeader is the length of the two magic numbers and the length that an image
	// with one entry begins with.
	imageHeader = 12
)

// SetFilter makes the seccomp filter of a container in images the given one: that is the
// first of each process's, and those that a process has loaded on top of it stay. The
// error is [ErrForbidden] if the images have no filter. prog is an array of struct
// sock_filter, flags are SECCOMP_FILTER_FLAG_* bits.
func SetFilter(images string, prog []byte, flags uint32) error {
	if err := setFilter(images, prog, flags); err != nil {
		return fmt.Errorf("set the seccomp filter of a checkpoint: %w", err)
	}
	return nil
}

func setFilter(images string, prog []byte, flags uint32) error {
	dir, err := os.Open(images)
	if err != nil {
		return err
	}
	defer dir.Close()
	text, err := rootpath.ReadFile(dir, filterImage, maxFilters)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no seccomp filter", ErrForbidden)
	}
	if err != nil {
		return err
	}

	if len(text) < imageHeader || uint64(binary.LittleEndian.Uint32(text[8:])) != uint64(len(text)-imageHeader) {
		return fmt.Errorf("%w: %s is malformed", ErrForbidden, filterImage)
	}
	var all seccomp.SeccompEntry
	if err := proto.Unmarshal(text[imageHeader:], &all); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrForbidden, filterImage, err)
	}
	found := false
	for i, f := range all.GetSeccompFilters() {
		switch {
		case f.Prev == nil:
			f.Filter, f.Flags, found = prog, to(flags), true
		case f.GetPrev() >= uint32(len(all.GetSeccompFilters())) || f.GetPrev() == uint32(i):
			return fmt.Errorf("%w: filter %d is on top of none", ErrForbidden, i)
		}
	}
	if !found {
		return fmt.Errorf("%w: it has no seccomp filter", ErrForbidden)
	}

	payload, err := proto.Marshal(&all)
	if err != nil {
		return err
	}
	out := append([]byte(nil), text[:8]...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(payload)))
	return durable.ReplaceFile(filepath.Join(images, filterImage), append(out, payload...), 0o600)
}
