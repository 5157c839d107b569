package criu

import (
	"errors"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// linked gives file 50 a link, as CRIU does.
func (i *images) linked(path string) *regfile.RegFileEntry {
	link := &regfile.RegFileEntry{Id: u(51), Name: &path, MntId: proto.Int32(-1)}
	i.files = append(i.files, &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: u(51), Reg: link})
	i.more[remapImage] = image{magic: magicRemap, entries: entriesOf(&remap_file_path.RemapFilePathEntry{OrigId: u(50), RemapId: u(51)})}
	return link
}

// TestLinks lists the link of a file, and has it be at another path.
func TestLinks(t *testing.T) {
	i := newImages(t)
	if list, err := Links(t.Context(), i.write(t)); err != nil || len(list) > 0 {
		t.Fatalf("of no link: %v, %v", list, err)
	}
	i.open(regular("/dev/sem.x", 12, unix.S_IFREG))
	i.linked("/dev/link_remap.51")
	i.more["ghost-file-7.img"] = image{magic: magicGhost, entries: entriesOf(&ghost_file.GhostFileEntry{Uid: u(0), Gid: u(0), Mode: u(unix.S_IFREG), Dev: u(42), Ino: to(uint64(4711))})}
	dir := i.write(t)
	list, err := Links(t.Context(), dir)
	if err != nil || len(list) != 1 || list[0].Mount != "/dev" || list[0].Path != "/dev/link_remap.51" {
		t.Fatalf("links are %v, %v", list, err)
	}
	if files, err := Nameless(t.Context(), dir); err != nil || !slices.Equal(files, [][2]uint64{{42, 4711}}) {
		t.Errorf("files without a name are %v, %v", files, err)
	}

	if err := RenameLinks(t.Context(), dir, map[Link]string{list[0]: "/dev/other"}); err != nil {
		t.Fatal(err)
	}
	all, err := Inspect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, of := all.files[51].GetReg(), all.files[50].GetReg(); got.GetName() != "/dev/other" || of.GetName() != "/dev/sem.x" || got.GetMntId() != 12 || len(all.files) != len(i.files) {
		t.Errorf("the link is %v, and of %v; %d of %d files", got, of, len(all.files), len(i.files))
	}
}

// TestLinksRefused has links that lead elsewhere.
func TestLinksRefused(t *testing.T) {
	for name, change := range map[string]func(i *images){
		"elsewhere":              func(i *images) { i.linked("/etc/shadow") },
		"above":                  func(i *images) { i.linked("/dev/../etc/shadow") },
		"on a mount that it has": func(i *images) { i.linked("/dev/link_remap.51").MntId = proto.Int32(13) },
		"of nothing": func(i *images) {
			i.linked("/dev/link_remap.51")
			i.more[remapImage].entries[0].(*remap_file_path.RemapFilePathEntry).OrigId = u(99)
		},
		"nothing": func(i *images) {
			i.linked("/dev/link_remap.51")
			i.more[remapImage].entries[0].(*remap_file_path.RemapFilePathEntry).RemapId = u(99)
		},
	} {

		i := newImages(t)
		i.open(regular("/dev/sem.x", 12, unix.S_IFREG))
		change(i)
		if _, err := Inspect(t.Context(), i.write(t)); !errors.Is(err, ErrImages) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
