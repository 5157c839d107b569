package criu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const filterImage = "seccomp.img"

// SetFilter makes the seccomp filter of a container in images the given one: that is the
// first of each process's, and those that a process has loaded on top of it stay. The
// error is [ErrForbidden] if the images have no filter, [ErrImages] for what is malformed.
// prog is an array of struct sock_filter, flags are SECCOMP_FILTER_FLAG_* bits.
func SetFilter(ctx context.Context, images string, prog []byte, flags uint32) error {
	if err := setFilter(ctx, images, prog, flags); err != nil {
		return fmt.Errorf("set the seccomp filter of a checkpoint: %w", err)
	}
	return nil
}

func setFilter(ctx context.Context, images string, prog []byte, flags uint32) error {
	d, err := openImages(ctx, images)
	if err != nil {
		return err
	}
	defer d.close()
	if !d.has(filterImage) {
		return forbidden("it has no seccomp filter")
	}
	all, err := one[*seccomp.SeccompEntry](d, filterImage, magicSeccomp, maxLarge)
	if err != nil {
		return err
	}

	found := false
	for i, f := range all.GetSeccompFilters() {
		switch {
		case f.Prev == nil:
			f.Filter, f.Flags, found = prog, to(flags), true
		case f.GetPrev() >= uint32(len(all.GetSeccompFilters())) || f.GetPrev() == uint32(i):
			return forbidden("filter %d is on top of none", i)
		}
	}
	if !found {
		return forbidden("it has no seccomp filter")
	}
	return replaceImage(filepath.Join(images, filterImage), magicSeccomp, all)
}

// replaceImage writes an image in place of another. It does not wait for the
// disk, once for each process: after a crash nobody restores it any more.
func replaceImage[M proto.Message](file string, magic uint32, entries ...M) error {
	text := binary.LittleEndian.AppendUint32(nil, commonMagic)
	text = binary.LittleEndian.AppendUint32(text, magic)
	for _, e := range entries {
		payload, err := proto.Marshal(e)
		if err != nil {
			return err
		}
		text = append(binary.LittleEndian.AppendUint32(text, uint32(len(payload))), payload...)
	}
	return replaceFile(file, bytes.NewReader(text))
}

// replaceFile puts a new file in the place of another, which may be a snapshot's, too.
func replaceFile(file string, content io.Reader) error {
	next := file + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(next, file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}
