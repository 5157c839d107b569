package criu

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
)

const remapImage = "remap-fpath.img"

// Link is a name that CRIU gives, for as long as a dump takes, to a file that a process has
// open and that has lost the name by which it was opened, but not all: one of a semaphore that
// sem_open has made, for example. A restore needs the file to have it again, and then takes it
// away.
type Link struct {
	// Mount is where the file system is mounted in the container, and Path that of the file, in
	// the container.
	Mount, Path string

	file uint32
}

// Links lists the names that CRIU has given in a dump, whose images these are, while it waits
// in [Dump.Saved].
func Links(ctx context.Context, images string) ([]Link, error) {
	d, err := openDumped(ctx, images)
	if err != nil {
		return nil, fmt.Errorf("list links of a dump: %w", err)
	}
	defer d.close()
	list, err := d.links()
	if err != nil {
		return nil, fmt.Errorf("list links of a dump: %w", err)
	}
	return list, nil
}

func (d *imageDir) links() (list []Link, err error) {
	if !d.has(remapImage) {
		return nil, nil
	}
	of := map[uint32]uint32{} // the file, by its link
	err = read(d, remapImage, magicRemap, maxEntry, plainly(func(e *remap_file_path.RemapFilePathEntry) error {
		if e.GetRemapType() == remap_file_path.RemapType_LINKED {
			of[e.GetRemapId()] = e.GetOrigId()
		}
		return nil
	}))
	if err != nil || len(of) == 0 {
		return nil, err
	}

	mounts := map[uint32]string{}
	for _, name := range d.names() {
		if ok, _ := filepath.Match("mountpoints-*.img", name); !ok {
			continue
		}
		err := read(d, name, magicMounts, maxEntry, plainly(func(m *mnt.MntEntry) error {
			mounts[m.GetMntId()] = m.GetMountpoint()
			return nil
		}))
		if err != nil {
			return nil, err
		}
	}
	files := map[uint32]*regfile.RegFileEntry{}
	err = read(d, filesImage, magicFiles, maxEntry, plainly(func(e *fdinfo.FileEntry) error {
		files[e.GetId()] = e.GetReg()
		return nil
	}))
	for id, file := range of {
		list = append(list, Link{mounts[uint32(files[file].GetMntId())], files[id].GetName(), id})
	}
	return list, err
}

// RenameLinks has a restore find links of [Links] at other paths: those that CRIU gives in the
// dumps of two containers may be the same.
func RenameLinks(ctx context.Context, images string, paths map[Link]string) error {
	d, err := openDumped(ctx, images)
	if err != nil {
		return fmt.Errorf("rename links of a dump: %w", err)
	}
	defer d.close()
	if err := d.renameLinks(images, paths); err != nil {
		return fmt.Errorf("rename links of a dump: %w", err)
	}
	return nil
}

func (d *imageDir) renameLinks(images string, paths map[Link]string) error {
	byID := map[uint32]string{}
	for l, path := range paths {
		byID[l.file] = path
	}
	var all []*fdinfo.FileEntry
	err := read(d, filesImage, magicFiles, maxEntry, plainly(func(e *fdinfo.FileEntry) error {
		if path, ok := byID[e.GetId()]; ok && e.GetReg() != nil {
			e.GetReg().Name = to(path)
		}
		all = append(all, e)
		return nil
	}))
	if err != nil {
		return err
	}
	return replaceImage(filepath.Join(images, filesImage), magicFiles, all...)
}

// Nameless lists the files in images that have no name any more, as device and inode: each dump
// has its own copy of one.
func Nameless(ctx context.Context, images string) (list [][2]uint64, err error) {
	d, err := openImages(ctx, images)
	if err != nil {
		return nil, fmt.Errorf("list files of a dump that have no name: %w", err)
	}
	defer d.close()
	for _, name := range d.names() {
		if !strings.HasPrefix(name, ghostPrefix) {
			continue
		}
		e, err := d.ghost(name)
		if err != nil {
			return nil, fmt.Errorf("list files of a dump that have no name: %w", err)
		}
		list = append(list, [2]uint64{uint64(e.GetDev()), e.GetIno()})
	}
	return list, nil
}

const ghostPrefix = "ghost-file-"

// ghost reads the attributes of a file without a name.
func (d *imageDir) ghost(name string) (*ghost_file.GhostFileEntry, error) {
	f, _, err := d.take(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var e ghost_file.GhostFileEntry
	r := newImageReader(d, f, maxEntry)
	if err = r.begin(magicGhost); err == nil {
		err = r.next(&e)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrImages, name, noEOF(err))
	}
	return &e, nil
}
