package criu

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	seccomp_images "github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"crisp/runtime/seccomp"
)

// images are those of a dump, which tests change before they are written.
type images struct {
	inventory *inventory.InventoryEntry
	tree      []*pstree.PstreeEntry
	core      *criu_core.CoreEntry // of PID 1
	ids       *criu_core.TaskKobjIdsEntry
	memory    *mm.MmEntry
	fds       []*fdinfo.FdinfoEntry
	files     []*fdinfo.FileEntry
	mounts    []*mnt.MntEntry
	network   *netdev.NetnsEntry
	filters   []*seccomp_images.SeccompFilter
	cgroups   *cgroup.CgroupEntry
	pages     []*pagemap.PagemapEntry
	tmpfs     []tar.Header
	// more are further images, and raw files whose magic number is 0.
	more map[string]image
}

type image struct {
	magic   uint32
	entries []proto.Message
	raw     []byte // what follows
}

// onRoot is a regular file in the container's root.
func onRoot(id uint32, name string, mode uint32) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: &id, Reg: &regfile.RegFileEntry{Id: &id, Name: &name, MntId: proto.Int32(10), Mode: &mode}}
}

// mounted is a mount of a container.
func mounted(id uint32, kind mnt.Fstype, at string, flags uint32, options string) *mnt.MntEntry {
	return &mnt.MntEntry{Fstype: proto.Uint32(uint32(kind)), MntId: &id, RootDev: proto.Uint32(id), Root: proto.String("/"), Mountpoint: &at, Flags: &flags, Options: &options}
}

// simpleSpec is the spec of a container, to whose processes newImages belong.
func simpleSpec() *specs.Spec {
	capabilities := []string{"CAP_CHOWN", "CAP_KILL"}
	limit := int64(1 << 20)
	return &specs.Spec{
		Process: &specs.Process{
			User: specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{2000}}, NoNewPrivileges: true, OOMScoreAdj: new(int),
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Permitted: capabilities, Effective: capabilities},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		},
		Root: &specs.Root{Path: "rootfs", Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/data", Type: "bind", Options: []string{"rbind", "rprivate", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: "mount"}, {Type: "network"}, {Type: "uts"}, {Type: "ipc"}, {Type: "pid"}, {Type: "cgroup"}},
			Seccomp:    seccomp.RuntimeDefault(nil), MaskedPaths: []string{"/proc/self", "/proc/none", "/etc/x"}, ReadonlyPaths: []string{"/proc/sys"},
			Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
		},
	}
}

// newImages are images of one process.
func newImages(t testing.TB) *images {
	t.Helper()
	filter, err := seccomp.Compile(seccomp.RuntimeDefault(nil))
	if err != nil {
		t.Fatal(err)
	}
	u, ids := proto.Uint32, func(first uint32) *criu_core.TaskKobjIdsEntry {
		return &criu_core.TaskKobjIdsEntry{
			FilesId: proto.Uint32(2), PidNsId: proto.Uint32(first), NetNsId: proto.Uint32(first + 1), IpcNsId: proto.Uint32(first + 2), UtsNsId: proto.Uint32(first + 3),
			MntNsId: proto.Uint32(first + 4), CgroupNsId: proto.Uint32(first + 5), UserNsId: proto.Uint32(99), TimeNsId: proto.Uint32(98),
		}
	}
	limits := make([]*rlimit.RlimitEntry, rlimits)
	for n := range limits {
		limits[n] = &rlimit.RlimitEntry{Cur: proto.Uint64(1024), Max: proto.Uint64(1024)}
	}
	const own = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	masked := mounted(14, mnt.Fstype_DEVTMPFS, "/proc/self", 0, "")
	masked.ExtKey = proto.String("/proc/self")
	data := mounted(13, mnt.Fstype_UNSUPPORTED, "/data", unix.MS_RDONLY, "")
	data.ExtKey = proto.String("/data")
	readonly := mounted(15, mnt.Fstype_PROC, "/proc/sys", unix.MS_RDONLY|own, "")
	readonly.Root = proto.String("/sys")

	return &images{
		inventory: &inventory.InventoryEntry{
			ImgVersion: u(imageVersion), RootIds: ids(1), PluginsEntry: &inventory.PluginsEntry{}, NetworkLockMethod: u(1),
			DumpCriuRunId: proto.String("4ff5462e-62ca-4c85-9b24-6e4930782f3b"),
		},
		tree: []*pstree.PstreeEntry{{Pid: u(1), Ppid: u(0), Pgid: u(1), Sid: u(1), Threads: []uint32{1}}},
		core: &criu_core.CoreEntry{
			Mtype: criu_core.CoreEntry_X86_64.Enum(),
			Tc:    &criu_core.TaskCoreEntry{TaskState: u(1), OomScoreAdj: proto.Int32(0), Loginuid: u(unsetUID), Rlimits: &criu_core.TaskRlimitsEntry{Rlimits: limits}},
			ThreadCore: &criu_core.ThreadCoreEntry{
				SeccompMode: criu_core.SeccompMode_filter.Enum(), SeccompFilter: u(0),
				Creds: &creds.CredsEntry{
					Uid: u(1000), Euid: u(1000), Suid: u(1000), Fsuid: u(1000), Gid: u(1000), Egid: u(1000), Sgid: u(1000), Fsgid: u(1000), Groups: []uint32{2000},
					CapBnd: []uint32{1<<0 | 1<<5, 0}, CapPrm: []uint32{1 << 0, 0}, NoNewPrivs: u(1),
				},
			},
		},
		ids: ids(11), memory: &mm.MmEntry{ExeFileId: u(1)},
		fds:   []*fdinfo.FdinfoEntry{{Id: u(3), Type: fdinfo.FdTypes_PIPE.Enum(), Fd: u(1)}},
		files: []*fdinfo.FileEntry{onRoot(1, "/bin/sh", unix.S_IFREG|0o755), onRoot(2, "/", unix.S_IFDIR|0o755), {Type: fdinfo.FdTypes_PIPE.Enum(), Id: u(3), Pipe: &pipe.PipeEntry{Id: u(3), PipeId: u(7)}}},
		mounts: []*mnt.MntEntry{
			mounted(10, mnt.Fstype_OVERLAYFS, "/", unix.MS_RDONLY, "lowerdir=x"), mounted(11, mnt.Fstype_PROC, "/proc", own, ""),
			mounted(12, mnt.Fstype_TMPFS, "/dev", unix.MS_NOSUID, "size=64k,mode=755"), data, masked, readonly,
		},
		network: &netdev.NetnsEntry{ExtKey: proto.String("net")}, filters: []*seccomp_images.SeccompFilter{{Filter: filter.Prog}},
		cgroups: &cgroup.CgroupEntry{}, pages: []*pagemap.PagemapEntry{{Flags: u(pagePresent), NrPages: proto.Uint64(2)}, {Flags: u(pageLazy), NrPages: proto.Uint64(1 << 30)}},
		tmpfs: []tar.Header{{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeChar, Name: "./null", Devmajor: 1, Devminor: 3}},
		more:  map[string]image{"pages-1.img": {raw: make([]byte, 2*os.Getpagesize())}},
	}
}

// fill sets all required fields of a message that are not.
func fill(m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		switch {
		case f.Cardinality() == protoreflect.Required && !m.Has(f):
			m.Set(f, m.NewField(f))
			if f.Message() != nil {
				fill(m.Mutable(f).Message())
			}
		case f.Message() != nil && f.IsList():
			for n := range m.Get(f).List().Len() {
				fill(m.Get(f).List().Get(n).Message())
			}
		case f.Message() != nil && m.Has(f):
			fill(m.Get(f).Message())
		}
	}
}

// entriesOf makes a list of messages.
func entriesOf[M proto.Message](list ...M) []proto.Message {
	out := make([]proto.Message, len(list))
	for i, m := range list {
		out[i] = m
	}
	return out
}

// write writes the images to a new directory.
func (i *images) write(t testing.TB) string {
	t.Helper()
	var content bytes.Buffer
	z := gzip.NewWriter(&content)
	w := tar.NewWriter(z)
	for _, h := range i.tmpfs {
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(make([]byte, h.Size))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}

	all := map[string]image{
		"inventory.img": {magicInventory, entriesOf(i.inventory), nil}, "pstree.img": {magicPstree, entriesOf(i.tree...), nil},
		"core-1.img": {magicCore, entriesOf(i.core), nil}, "ids-1.img": {magicIDs, entriesOf(i.ids), nil},
		"fs-1.img": {magicFS, entriesOf(&fs.FsEntry{CwdId: proto.Uint32(2), RootId: proto.Uint32(2)}), nil}, "mm-1.img": {magicMM, entriesOf(i.memory), nil},
		"fdinfo-2.img": {magicFdinfo, entriesOf(i.fds...), nil}, "files.img": {magicFiles, entriesOf(i.files...), nil},
		"mountpoints-15.img": {magicMounts, entriesOf(i.mounts...), nil}, "seccomp.img": {magicSeccomp, entriesOf(&seccomp_images.SeccompEntry{SeccompFilters: i.filters}), nil},
		"cgroup.img":              {magicCgroup, entriesOf(i.cgroups), nil},
		"pagemap-1.img":           {magicPagemap, append(entriesOf(&pagemap.PagemapHead{PagesId: proto.Uint32(1)}), entriesOf(i.pages...)...), nil},
		"tmpfs-dev-12.tar.gz.img": {raw: content.Bytes()},
	}
	if i.network != nil {
		all["netns-12.img"] = image{magicNetNS, entriesOf(i.network), nil}
	}

	dir := t.TempDir()
	for name, m := range i.more {
		all[name] = m
	}
	for name, m := range all {
		if err := os.WriteFile(filepath.Join(dir, name), m.encode(t), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// encode is an image as CRIU writes it.
func (m image) encode(t testing.TB) []byte {
	t.Helper()
	var b []byte
	if m.magic != 0 && m.magic != magicInventory {
		b = binary.LittleEndian.AppendUint32(b, commonMagic)
	}
	if m.magic != 0 {
		b = binary.LittleEndian.AppendUint32(b, m.magic)
	}
	for _, e := range m.entries {
		fill(e.ProtoReflect())
		text, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(text))), text...)
	}
	return slices.Concat(b, m.raw)
}

// asWritten is where mounts are in a container without links.
func asWritten(path string) (string, error) { return path, nil }

// check inspects images, and compares them with what a spec allows.
func check(t testing.TB, dir string, s *specs.Spec, trusted bool) error {
	t.Helper()
	a, err := AllowedBy(s, asWritten)
	if err != nil {
		t.Fatal(err)
	}
	a.Trusted = trusted
	i, err := Inspect(t.Context(), dir)
	if err != nil {
		return err
	}
	return i.Check(a)
}

// manyFields is an entry of more fields than any has, in the bounds of its bytes.
func manyFields() []byte {
	text := bytes.Repeat([]byte{0x72, 0}, maxFields+1)
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func emptyTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := errors.Join(tar.NewWriter(z).Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
