package criu

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/ns"
	packet_sock "github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	seccomp_images "github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func u(n uint32) *uint32 { return &n }

// open adds a file that the process has open.
func (i *images) open(f *fdinfo.FileEntry) {
	f.Id = u(50)
	i.files = append(i.files, f)
	i.fds = append(i.fds, &fdinfo.FdinfoEntry{Id: u(50), Type: f.Type, Fd: u(5)})
}

// mayGain lets programs give their processes more.
func (i *images) mayGain(s *specs.Spec) {
	s.Process.NoNewPrivileges, i.core.ThreadCore.Creds.NoNewPrivs = false, nil
}

func inet(change func(s *sk_inet.InetSkEntry)) *fdinfo.FileEntry {
	s := &sk_inet.InetSkEntry{Family: u(unix.AF_INET), Type: u(unix.SOCK_STREAM), SrcPort: u(8080), State: u(10), Opts: &sk_opts.SkOptsEntry{}}
	change(s)
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_INETSK.Enum(), Isk: s}
}

func unixSocket(change func(s *sk_unix.UnixSkEntry)) *fdinfo.FileEntry {
	s := &sk_unix.UnixSkEntry{Name: []byte("/run/x"), MntId: proto.Int32(10), Opts: &sk_opts.SkOptsEntry{}}
	change(s)
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_UNIXSK.Enum(), Usk: s}
}

// regular is a file on a mount.
func regular(name string, mount int32, mode uint32) *fdinfo.FileEntry {
	f := onRoot(50, name, mode)
	f.Reg.MntId = &mount
	return f
}

func watch() *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_INOTIFY.Enum(), Ify: &fsnotify.InotifyFileEntry{Wd: []*fsnotify.InotifyWdEntry{{}}}}
}

// hostile is a change that makes images worth more than the container is.
type hostile func(i *images, s *specs.Spec)

// rightsBeyond want more than the spec gives to a process.
func rightsBeyond() map[string]hostile {
	creds := func(i *images) *criu_core.ThreadCoreEntry { return i.core.ThreadCore }
	return map[string]hostile{
		"user":               func(i *images, _ *specs.Spec) { creds(i).Creds.Euid = u(0) },
		"saved user":         func(i *images, _ *specs.Spec) { creds(i).Creds.Suid = u(0) },
		"user of files":      func(i *images, _ *specs.Spec) { creds(i).Creds.Fsuid = u(0) },
		"group":              func(i *images, _ *specs.Spec) { creds(i).Creds.Sgid = u(0) },
		"further group":      func(i *images, _ *specs.Spec) { creds(i).Creds.Groups = []uint32{2000, 42} },
		"capability":         func(i *images, _ *specs.Spec) { creds(i).Creds.CapEff = []uint32{1 << 21} },
		"bounding set":       func(i *images, _ *specs.Spec) { creds(i).Creds.CapBnd = []uint32{^uint32(0), ^uint32(0)} },
		"ambient capability": func(i *images, _ *specs.Spec) { creds(i).Creds.CapAmb = []uint32{0, 1} },
		"third word":         func(i *images, _ *specs.Spec) { creds(i).Creds.CapPrm = []uint32{0, 0, 1} },
		"capability beyond, by a program": func(i *images, s *specs.Spec) {
			i.mayGain(s)
			creds(i).Creds.CapPrm = []uint32{1 << 21}
		},

		"gains privileges":     func(i *images, _ *specs.Spec) { creds(i).Creds.NoNewPrivs = nil },
		"securebits":           func(i *images, _ *specs.Spec) { creds(i).Creds.Secbits = u(1) },
		"AppArmor profiles":    func(i *images, _ *specs.Spec) { creds(i).Creds.ApparmorData = []byte("x") },
		"label of sockets":     func(i *images, _ *specs.Spec) { creds(i).Creds.LsmSockcreate = proto.String("x") },
		"no label":             func(_ *images, s *specs.Spec) { s.Process.ApparmorProfile = "crisp-default" },
		"no filter":            func(i *images, _ *specs.Spec) { creds(i).SeccompMode = criu_core.SeccompMode_disabled.Enum() },
		"no filter said":       func(i *images, _ *specs.Spec) { creds(i).SeccompMode, creds(i).SeccompFilter = nil, nil },
		"another filter":       func(i *images, _ *specs.Spec) { i.filters[0].Filter = i.filters[0].Filter[8:] },
		"filter with listener": func(i *images, _ *specs.Spec) { i.filters[0].Flags = u(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER) },
		"oom_score_adj":        func(i *images, _ *specs.Spec) { i.core.Tc.OomScoreAdj = proto.Int32(-1000) },
		"no oom_score_adj":     func(i *images, _ *specs.Spec) { i.core.Tc.OomScoreAdj = nil },
		"login user":           func(i *images, _ *specs.Spec) { i.core.Tc.Loginuid = u(77) },
		"limit":                func(i *images, _ *specs.Spec) { i.core.Tc.Rlimits.Rlimits[unix.RLIMIT_NOFILE].Max = proto.Uint64(1025) },
		"no limits":            func(i *images, _ *specs.Spec) { i.core.Tc.Rlimits = nil },
		"nice":                 func(i *images, _ *specs.Spec) { creds(i).SchedNice = proto.Int32(-20) },
		"real time":            func(i *images, _ *specs.Spec) { creds(i).SchedPolicy = u(1) },
		"many threads": func(i *images, s *specs.Spec) {
			limit := int64(1)
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
			i.tree[0].Threads = []uint32{1, 5}
			i.more["core-5.img"] = image{magic: magicCore, entries: entriesOf(i.core)}
		},
		"memory by a plugin": func(i *images, _ *specs.Spec) { i.memory.Vmas = []*vma.VmaEntry{{Status: u(1 << 27)}} },
		"much memory": func(i *images, _ *specs.Spec) {
			i.pages = []*pagemap.PagemapEntry{{Flags: u(pagePresent), NrPages: proto.Uint64(1024)}}
			i.more["pages-1.img"] = image{raw: make([]byte, 1024*os.Getpagesize())}
		},
		"huge pages": func(i *images, _ *specs.Spec) {
			i.more["memfd.img"] = image{magic: magicMemfd, entries: entriesOf(&memfd.MemfdInodeEntry{HugetlbFlag: u(1)})}
		},
		"large pipe": func(i *images, _ *specs.Spec) {
			i.more["pipes-data.img"] = image{magic: magicPipes, entries: entriesOf(&pipe_data.PipeDataEntry{Size: u(1 << 30)})}
		},
	}
}

// placesBeyond want other namespaces and mounts than the container's.
func placesBeyond() map[string]hostile {
	return map[string]hostile{
		"plugins":         func(i *images, _ *specs.Spec) { i.inventory.PluginsEntry.Plugins = []string{"cuda"} },
		"any plugin":      func(i *images, _ *specs.Spec) { i.inventory.PluginsEntry = nil },
		"probes":          func(i *images, _ *specs.Spec) { i.inventory.AllowUprobes = proto.Bool(true) },
		"node's PIDs":     func(i *images, _ *specs.Spec) { i.ids.PidNsId = i.inventory.RootIds.PidNsId },
		"node's network":  func(i *images, _ *specs.Spec) { i.ids.NetNsId = i.inventory.RootIds.NetNsId },
		"node's cgroups":  func(i *images, _ *specs.Spec) { i.ids.CgroupNsId = i.inventory.RootIds.CgroupNsId },
		"user namespace":  func(i *images, _ *specs.Spec) { i.ids.UserNsId = u(1234) },
		"another network": func(i *images, _ *specs.Spec) { i.network = &netdev.NetnsEntry{} },
		"settings of the network": func(i *images, _ *specs.Spec) {
			i.network.DefConf = []int32{1}
		},
		"other users": func(i *images, s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			i.ids.UserNsId = u(1234)
			i.more["userns-1234.img"] = image{magic: magicUserNS, entries: entriesOf(&userns.UsernsEntry{UidMap: []*userns.UidGidExtent{{Count: u(65536)}}})}
		},
		"settings of cgroups": func(i *images, _ *specs.Spec) {
			i.cgroups.Controllers = []*cgroup.CgControllerEntry{{Dirs: []*cgroup.CgroupDirEntry{{DirName: proto.String("x")}}}}
		},

		"writable root":       func(i *images, _ *specs.Spec) { i.mounts[0].Flags = u(0) },
		"root from elsewhere": func(i *images, _ *specs.Spec) { i.mounts[0].ExtKey = proto.String("/") },
		"shared root":         func(i *images, _ *specs.Spec) { i.mounts[0].SharedId = u(1) },
		"programs in proc":    func(i *images, _ *specs.Spec) { i.mounts[1].Flags = u(unix.MS_NOSUID) },
		"large tmpfs":         func(i *images, _ *specs.Spec) { i.mounts[2].Options = proto.String("size=1g") },
		"tmpfs without bound": func(i *images, _ *specs.Spec) { i.mounts[2].Options = proto.String("mode=755") },
		"bound by blocks":     func(i *images, _ *specs.Spec) { i.mounts[2].Options = proto.String("size=64k,nr_blocks=100000") },
		"odd option":          func(i *images, _ *specs.Spec) { i.mounts[2].Options = proto.String("size=64k,huge=always") },
		"another type": func(i *images, _ *specs.Spec) {
			i.mounts[2].Fstype, i.mounts[2].Options = u(uint32(mnt.Fstype_SYSFS)), nil
		},
		"writable volume": func(i *images, _ *specs.Spec) { i.mounts[3].Flags = u(0) },
		"shared volume":   func(i *images, _ *specs.Spec) { i.mounts[3].MasterId = u(1) },
		"no volume":       func(i *images, _ *specs.Spec) { i.mounts = append(i.mounts[:3:3], i.mounts[4:]...) },
		"no mask":         func(i *images, _ *specs.Spec) { i.mounts = append(i.mounts[:4:4], i.mounts[5:]...) },
		"mask of its own": func(i *images, _ *specs.Spec) {
			i.mounts[4].ExtKey, i.mounts[4].Fstype = nil, u(uint32(mnt.Fstype_PROC))
		},
		"writable sysctls":     func(i *images, _ *specs.Spec) { i.mounts[5].Flags = u(0) },
		"no read-only sysctls": func(i *images, _ *specs.Spec) { i.mounts = i.mounts[:5] },
		"mount of a plugin":    func(i *images, _ *specs.Spec) { i.mounts[3].WithPlugin = proto.Bool(true) },
		"another proc": func(i *images, _ *specs.Spec) {
			i.mounts = append(i.mounts, mounted(20, mnt.Fstype_PROC, "/tmp", 0, ""))
		},
		"mount over a mount": func(i *images, _ *specs.Spec) {
			i.mounts = append(i.mounts, mounted(20, mnt.Fstype_PROC, "/proc", *i.mounts[1].Flags, ""))
		},
		"disk": func(i *images, _ *specs.Spec) {
			i.mounts = append(i.mounts, mounted(20, mnt.Fstype_AUTO, "/data/x", unix.MS_RDONLY, ""))
		},
		"foreign volume": func(i *images, _ *specs.Spec) {
			m := mounted(20, mnt.Fstype_UNSUPPORTED, "/etc/kubernetes", unix.MS_RDONLY, "")
			m.ExtKey = proto.String("/etc/kubernetes")
			i.mounts = append(i.mounts, m)
		},
		"device in a tmpfs": func(i *images, _ *specs.Spec) {
			i.tmpfs = append(i.tmpfs, tar.Header{Typeflag: tar.TypeBlock, Name: "./null", Devmajor: 8})
		},
	}
}

// filesBeyond have open what the container may not open.
func filesBeyond() map[string]hostile {
	opens := func(f func() *fdinfo.FileEntry) hostile { return func(i *images, _ *specs.Spec) { i.open(f()) } }
	kind := func(k fdinfo.FdTypes) func() *fdinfo.FileEntry {
		return func() *fdinfo.FileEntry { return &fdinfo.FileEntry{Type: k.Enum()} }
	}
	return map[string]hostile{
		"file outside":      opens(func() *fdinfo.FileEntry { return regular("/../etc/shadow", 10, unix.S_IFREG) }),
		"relative file":     opens(func() *fdinfo.FileEntry { return regular("etc/shadow", 10, unix.S_IFREG) }),
		"file of no mount":  opens(func() *fdinfo.FileEntry { return regular("/etc/shadow", 77, unix.S_IFREG) }),
		"file of any mount": opens(func() *fdinfo.FileEntry { return regular("/etc/shadow", -1, unix.S_IFREG) }),
		"file of a volume":  opens(func() *fdinfo.FileEntry { return regular("/data/secret", 13, unix.S_IFREG) }),
		"disk":              opens(func() *fdinfo.FileEntry { return regular("/disk", 10, unix.S_IFBLK) }),
		"raw port":          opens(func() *fdinfo.FileEntry { return inet(func(s *sk_inet.InetSkEntry) { s.Type = u(unix.SOCK_RAW) }) }),
		"low port":          opens(func() *fdinfo.FileEntry { return inet(func(s *sk_inet.InetSkEntry) { s.SrcPort = u(443) }) }),
		"marked socket":     opens(func() *fdinfo.FileEntry { return inet(func(s *sk_inet.InetSkEntry) { s.Opts.SoMark = u(1) }) }),
		"large buffer":      opens(func() *fdinfo.FileEntry { return inet(func(s *sk_inet.InetSkEntry) { s.Opts.SoRcvbuf = u(1 << 31) }) }),
		"connection of the node's": func(i *images, s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces[:1:1], s.Linux.Namespaces[2:]...)
			i.ids.NetNsId = i.inventory.RootIds.NetNsId
			i.network = nil
			i.open(inet(func(s *sk_inet.InetSkEntry) { s.State, s.DstPort = u(1), u(443) }))
		},

		"socket outside": opens(func() *fdinfo.FileEntry { return unixSocket(func(s *sk_unix.UnixSkEntry) { s.Uflags = u(1) }) }),
		"path outside":   opens(func() *fdinfo.FileEntry { return unixSocket(func(s *sk_unix.UnixSkEntry) { s.Name = []byte("/../x") }) }),
		"directory outside": opens(func() *fdinfo.FileEntry {
			return unixSocket(func(s *sk_unix.UnixSkEntry) { s.Name, s.NameDir = []byte("x"), proto.String("/..") })
		}),
		"socket in a volume": opens(func() *fdinfo.FileEntry {
			return unixSocket(func(s *sk_unix.UnixSkEntry) { s.MntId = proto.Int32(13) })
		}),
		"watch": opens(watch),
		"packets": opens(func() *fdinfo.FileEntry {
			f := kind(fdinfo.FdTypes_PACKETSK)()
			f.Psk = &packet_sock.PacketSockEntry{}
			return f
		}),
		"BPF map":          opens(kind(fdinfo.FdTypes_BPFMAP)),
		"file of a plugin": opens(kind(fdinfo.FdTypes_EXT)),
		"namespace": opens(func() *fdinfo.FileEntry {
			f := kind(fdinfo.FdTypes_NS)()
			f.Nsf = &ns.NsFileEntry{NsId: u(1)}
			return f
		}),
		"audit": opens(func() *fdinfo.FileEntry {
			f := kind(fdinfo.FdTypes_NETLINKSK)()
			f.Nlsk = &sk_netlink.NetlinkSkEntry{Protocol: u(unix.NETLINK_AUDIT)}
			return f
		}),
		"signals as root": func(i *images, _ *specs.Spec) { i.files[0].Reg.Fown = &fown.FownEntry{Pid: u(1)} },
		"console": func(i *images, _ *specs.Spec) {
			i.open(&fdinfo.FileEntry{Type: fdinfo.FdTypes_TTY.Enum(), Tty: &tty.TtyFileEntry{TtyInfoId: u(3)}})
			i.more["tty-info.img"] = image{magic: magicTTYInfo, entries: entriesOf(&tty.TtyInfoEntry{Id: u(3), Type: tty.TtyType_CONSOLE.Enum()})}
		},
		"lost name in a volume": func(i *images, _ *specs.Spec) {
			i.files = append(i.files, regular("/data/file", 13, unix.S_IFDIR))
			i.linked("/data/link_remap.51")
		},
	}
}

// TestForbidden has images with more than the container may have.
func TestForbidden(t *testing.T) {
	if err := check(t, newImages(t).write(t), simpleSpec(), false); err != nil {
		t.Fatalf("as they are: %v", err)
	}
	for kind, list := range map[string]map[string]hostile{"rights": rightsBeyond(), "places": placesBeyond(), "files": filesBeyond()} {
		for name, change := range list {
			i, s := newImages(t), simpleSpec()
			change(i, s)
			want := ErrForbidden
			if name == "no volume" || name == "foreign volume" { // which a request may forget
				want = ErrDiffers
			}
			if err := check(t, i.write(t), s, false); !errors.Is(err, want) || len(err.Error()) > 1000 {
				t.Errorf("%s: %s: error %v", kind, name, err)
			}
		}
	}
}

// TestTrusted has what is believed of a node that is trusted, or with a capability.
func TestTrusted(t *testing.T) {
	for name, change := range map[string]func(i *images){
		"file of a volume":   func(i *images) { i.open(regular("/data/file", 13, unix.S_IFREG)) },
		"socket in a volume": func(i *images) { i.open(unixSocket(func(s *sk_unix.UnixSkEntry) { s.MntId = proto.Int32(13) })) },
		"watch":              func(i *images) { i.open(watch()) },
	} {
		i := newImages(t)
		change(i)
		dir := i.write(t)
		if err := check(t, dir, simpleSpec(), true); err != nil {
			t.Errorf("%s of a trusted node: %v", name, err)
		}
		if err := check(t, dir, simpleSpec(), false); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s of nobody: %v", name, err)
		}
	}

	for name, change := range map[string]hostile{
		"users by a program": func(i *images, s *specs.Spec) { i.mayGain(s); i.core.ThreadCore.Creds.Euid = u(0) },
		"another filter on top": func(i *images, _ *specs.Spec) {
			i.filters = append(i.filters, &seccomp_images.SeccompFilter{Filter: make([]byte, 8), Prev: u(0)})
			i.core.ThreadCore.SeccompFilter = u(1)
		},
		"keeps capabilities": func(i *images, _ *specs.Spec) { i.core.ThreadCore.Creds.Secbits = u(1 << 4) },
		"port that all may use": func(i *images, s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
			i.open(inet(func(s *sk_inet.InetSkEntry) { s.SrcPort = u(80) }))
		},
		"abstract socket": func(i *images, _ *specs.Spec) {
			i.open(unixSocket(func(s *sk_unix.UnixSkEntry) { s.Name, s.MntId = []byte("\x00x"), proto.Int32(-1) }))
		},
		"device in its directory": func(i *images, _ *specs.Spec) { i.open(regular("/dev/null", 12, unix.S_IFCHR)) },
	} {
		i, s := newImages(t), simpleSpec()
		change(i, s)
		if err := check(t, i.write(t), s, false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostileImages has files that are none of CRIU's, or contradict each other.
func TestHostileImages(t *testing.T) {
	for name, change := range map[string]func(i *images){
		"unknown kind":      func(i *images) { i.more["iptables-12.img"] = image{raw: []byte("-P INPUT ACCEPT")} },
		"profiles":          func(i *images) { i.more["apparmor.img"] = image{} },
		"old kind":          func(i *images) { i.more["creds-1.img"] = image{} },
		"another's process": func(i *images) { i.more["core-9.img"] = image{magic: magicCore} },
		"another number":    func(i *images) { i.more["core-01.img"] = image{magic: magicCore} },
		"no image":          func(i *images) { i.more["x"] = image{} },
		"pages of nobody":   func(i *images) { i.more["pages-7.img"] = image{raw: make([]byte, os.Getpagesize())} },
		"few pages":         func(i *images) { i.more["pages-1.img"] = image{raw: make([]byte, os.Getpagesize())} },
		"many pages":        func(i *images) { i.pages[0].NrPages = proto.Uint64(1 << 63) },
		"pages of a parent": func(i *images) { i.pages[0].Flags = u(pagePresent | pageParent) },
		"pages, as of old":  func(i *images) { i.pages[0].InParent = proto.Bool(true) },
		"version":           func(i *images) { i.inventory.ImgVersion = u(3) },
		"command in a name": func(i *images) { i.inventory.DumpCriuRunId = proto.String("x { } ; flush ruleset") },
		"two inventories": func(i *images) {
			i.more["inventory.img"] = image{magic: magicInventory, entries: entriesOf(i.inventory, i.inventory)}
		},
		"wrong magic":     func(i *images) { i.more["files.img"] = image{magic: magicFS} },
		"long entry":      func(i *images) { i.more["files.img"] = image{magic: magicFiles, raw: []byte{0xff, 0xff, 0xff, 0x7f}} },
		"torn entry":      func(i *images) { i.more["files.img"] = image{magic: magicFiles, raw: []byte{4, 0, 0, 0, 8}} },
		"torn number":     func(i *images) { i.more["files.img"] = image{magic: magicFiles, raw: []byte{4, 0}} },
		"many fields":     func(i *images) { i.more["mm-1.img"] = image{magic: magicMM, raw: manyFields()} },
		"unknown field":   func(i *images) { i.core.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1}) },
		"unknown, deeper": func(i *images) { i.core.ThreadCore.Creds.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1}) },
		"no root":         func(i *images) { i.tree[0].Ppid = u(3) },
		"thread twice": func(i *images) {
			i.tree[0].Threads = []uint32{1, 5, 5}
			i.more["core-5.img"] = image{magic: magicCore, entries: entriesOf(i.core)}
		},
		"thread missing":     func(i *images) { i.tree[0].Threads = []uint32{1, 5} },
		"foreign session":    func(i *images) { i.tree[0].Sid = u(0) },
		"namespace not said": func(i *images) { i.ids.PidNsId = nil },
		"node's not said":    func(i *images) { i.inventory.RootIds.MntNsId = nil },
		"first has ended":    func(i *images) { i.core.Tc.TaskState = u(stateZombie) },
		"no process":         func(i *images) { i.tree = []*pstree.PstreeEntry{} },
		"file twice":         func(i *images) { i.files = append(i.files, i.files[0]) },
		"no file":            func(i *images) { i.fds[0].Id = u(99) },
		"another type":       func(i *images) { i.fds[0].Type = fdinfo.FdTypes_REG.Enum() },
		"type without file": func(i *images) {
			i.files[2].Type = fdinfo.FdTypes_MEMFD.Enum()
			i.fds[0].Type = fdinfo.FdTypes_MEMFD.Enum()
		},
		"program outside":    func(i *images) { i.memory.ExeFileId = u(3) },
		"odd given file":     func(i *images) { f := regular("pipe:[1]", 10, unix.S_IFCHR); f.Reg.Ext = proto.Bool(true); i.open(f) },
		"type not said":      func(i *images) { f := regular("/x", 10, 0); f.Reg.Mode = nil; i.open(f) },
		"endless filters":    func(i *images) { i.filters[0].Prev = u(0) },
		"no such filter":     func(i *images) { i.core.ThreadCore.SeccompFilter = u(9) },
		"mount twice":        func(i *images) { i.mounts[1].MntId = i.mounts[0].MntId },
		"mount outside":      func(i *images) { i.mounts[3].Mountpoint = proto.String("/../data") },
		"mount by another":   func(i *images) { i.mounts[3].ExtKey = proto.String("/etc") },
		"no content":         func(i *images) { i.more["tmpfs-dev-12.tar.gz.img"] = image{raw: []byte("x")} },
		"content of nothing": func(i *images) { i.more["tmpfs-dev-77.tar.gz.img"] = image{raw: emptyTar(t)} },
		"content outside":    func(i *images) { i.tmpfs = append(i.tmpfs, tar.Header{Typeflag: tar.TypeReg, Name: "../x"}) },
		"link outside": func(i *images) {
			i.tmpfs = append(i.tmpfs, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "/etc/shadow"})
		},
		"content too large": func(i *images) {
			i.tmpfs = append(i.tmpfs, tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 65 << 10})
		},
		"nameless device": func(i *images) {
			i.more["ghost-file-1.img"] = image{magic: magicGhost, entries: entriesOf(&ghost_file.GhostFileEntry{Mode: u(unix.S_IFBLK)})}
		},
		"torn ghost": func(i *images) {
			i.more["ghost-file-1.img"] = image{magic: magicGhost, entries: []proto.Message{
				&ghost_file.GhostFileEntry{Mode: u(unix.S_IFREG), Chunks: proto.Bool(true)}, &ghost_file.GhostChunkEntry{Len: proto.Uint64(1 << 40)},
			}}
		},
		"torn pipe": func(i *images) {
			i.more["pipes-data.img"] = image{magic: magicPipes, entries: entriesOf(&pipe_data.PipeDataEntry{Bytes: u(100)})}
		},
	} {
		i := newImages(t)
		change(i)
		if err := check(t, i.write(t), simpleSpec(), true); !errors.Is(err, ErrImages) || len(err.Error()) > 1000 {
			t.Errorf("%s: error %v", name, err)
		}
	}

	dir := newImages(t).write(t)
	if err := os.Symlink("/", filepath.Join(dir, "parent")); err != nil {
		t.Fatal(err)
	}
	if err := check(t, dir, simpleSpec(), true); !errors.Is(err, ErrImages) {
		t.Errorf("an earlier dump: %v", err)
	}
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(late)
	if _, err := Inspect(ctx, newImages(t).write(t)); !errors.Is(err, late) {
		t.Errorf("after its end: %v", err)
	}
}

// TestNeeds lists what a restore is to be given.
func TestNeeds(t *testing.T) {
	i := newImages(t)
	f := regular("file[3a:5]", -1, unix.S_IFCHR)
	f.Reg.Ext = proto.Bool(true)
	i.open(f)
	i.fds[1].Fd = u(0)
	// What is the same as nothing may be new.
	i.inventory.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 0})
	found, err := Inspect(t.Context(), i.write(t))
	if err != nil {
		t.Fatal(err)
	}
	n := found.Needs()
	if !n.Network || strings.Join(n.Mounts, " ") != "/data /proc/self" || n.Streams != [3]string{"file[3a:5]", "pipe:[7]", ""} || len(n.Files) != 1 || len(n.Terminals) > 0 {
		t.Errorf("needs %+v", n)
	}
}

// FuzzInspect inspects images of any bytes.
func FuzzInspect(f *testing.F) {
	dir := newImages(f).write(f)
	names, err := os.ReadDir(dir)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range names {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.Name(), text)
	}
	a, err := AllowedBy(simpleSpec(), asWritten)
	if err != nil {
		f.Fatal(err)
	}

	f.Fuzz(func(t *testing.T, name string, text []byte) {
		if name == "" || filepath.Base(name) != name || name == "." || name == ".." || strings.ContainsRune(name, 0) || len(name) > unix.NAME_MAX {
			return
		}
		dir := newImages(t).write(t)
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := Inspect(t.Context(), dir)
		if err == nil {
			i.Needs()
			err = i.Check(a)
		}
		if err != nil && !errors.Is(err, ErrImages) && !errors.Is(err, ErrForbidden) {
			t.Errorf("error %v", err)
		}
	})
}
