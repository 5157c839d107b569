package criu

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"crisp/runtime/rootpath"
)

// TestEnterNamespaces checks that images are those of a container without the pod's
// namespaces, and with all others.
func TestEnterNamespaces(t *testing.T) {
	i := newImages(t)
	i.ids.UserNsId = proto.Uint32(77)
	i.more["userns-77.img"] = image{magicUserNS, entriesOf(&userns.UsernsEntry{}), nil}
	i.more["utsns-14.img"] = image{magicUTSNS, entriesOf(&utsns.UtsnsEntry{Nodename: proto.String("old"), Domainname: proto.String("old")}), nil}
	i.more["ids-2.img"] = image{magicIDs, entriesOf(&criu_core.TaskKobjIdsEntry{}), nil} // of one that has ended
	dir := i.write(t)
	unchanged := linkAll(t, dir)
	defer unchanged()

	owner := rootpath.Owner{UID: os.Getuid(), GID: os.Getgid()}
	if owner.UID == 0 {
		owner = rootpath.Owner{UID: 300000, GID: 400000}
	}
	if err := EnterNamespaces(t.Context(), dir, []specs.LinuxNamespaceType{specs.UserNamespace, specs.UTSNamespace}, owner); err != nil {
		t.Fatal(err)
	}

	d, err := openImages(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if d.has("userns-77.img") || d.has("utsns-14.img") || !d.has("netns-12.img") {
		t.Errorf("left: %q", d.names())
	}
	for name := range d.left {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || int(st.Uid) != owner.UID || int(st.Gid) != owner.GID {
			t.Errorf("%s is of %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}

	ids, err := one[*criu_core.TaskKobjIdsEntry](d, "ids-1.img", magicIDs, maxEntry)
	if err != nil {
		t.Fatal(err)
	}
	// 99 and 4 are those of CRIU, 13 and 12 the container's.
	if ids.GetUserNsId() != 99 || ids.GetUtsNsId() != 4 || ids.GetIpcNsId() != 13 || ids.GetNetNsId() != 12 {
		t.Errorf("it is in %v", ids)
	}
	gone, err := one[*criu_core.TaskKobjIdsEntry](d, "ids-2.img", magicIDs, maxEntry)
	if err != nil || gone.GetUserNsId() != 0 {
		t.Errorf("one that has ended is in %v, %v", gone, err)
	}

	if err := EnterNamespaces(t.Context(), t.TempDir(), nil, owner); err == nil {
		t.Error("no image: no error")
	}
}

// linkAll gives images a second name each, as those of a snapshot have. The returned
// function checks that these files have stayed what they were.
func linkAll(t *testing.T, dir string) (unchanged func()) {
	t.Helper()
	snapshot := t.TempDir()
	type file struct {
		text     string
		uid, gid uint32
	}
	read := func() map[string]file {
		all := map[string]file{}
		entries, err := os.ReadDir(snapshot)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(snapshot, e.Name())
			text, err := os.ReadFile(path)
			var st unix.Stat_t
			if err := errors.Join(err, unix.Stat(path, &st)); err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = file{string(text), st.Uid, st.Gid}
		}
		return all
	}

	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.Link(filepath.Join(dir, e.Name()), filepath.Join(snapshot, e.Name())))
	}
	if err != nil {
		t.Fatal(err)
	}
	before := read()
	return func() {
		if after := read(); !maps.Equal(after, before) {
			t.Errorf("the snapshot was %v, and is %v", before, after)
		}
	}
}
