package plan

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// The base of a pod is a nearly empty mount namespace, so that copying it for
// each container is cheap and no path of the host is ever reachable from a
// container. No process that a container can see is ever in it:
//
//	/root   an empty directory on which a container's root is mounted
//	/shm    the pod's shared memory
//	/mask   an empty file system, never writable, for masked directories
//	/null   the host's null device, for masked files
//	/procs  the procfs of the pod's PID namespace, if it has one
//	/proc   /sys, in a user namespace only: the kernel lets such a namespace
//	        mount new instances only where these are visible
const (
	baseRoot  = "root"
	baseShm   = "shm"
	baseMask  = "mask"
	baseNull  = "null"
	baseProcs = "procs"
	baseProc  = "proc"
	baseSys   = "sys"
)

// SharedIn is where a pod's shared memory is in its base.
const SharedIn = "/" + baseShm

// procAttrs are the mount attributes of a procfs.
const procAttrs = uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)

// baseOptions describe a base.
type baseOptions struct {
	shmSize int64 // in bytes, 0 for [DefaultShmSize]
	// label is the SELinux label of what containers see of it, empty for none.
	label string
	// userns: it belongs to a user namespace. procfs: the process is the init
	// of the pod's PID namespace.
	userns, procfs bool
}

// base turns a copy of the host's mounts into a pod's base.
func (b *builder) base(o baseOptions) {
	b.step("make mounts private", unix.SYS_MOUNT, zero(), str("/"), zero(), num(uint64(unix.MS_REC|unix.MS_PRIVATE)), zero())
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	b.fileSystem("base", "tmpfs", attrs, []fsOption{{key: "mode", value: "755"}, {key: "size", value: "64k"}, {key: "nr_inodes", value: "16"}}, regBase)
	dirs := []string{baseRoot, baseShm, baseMask}

	if o.procfs {
		dirs = append(dirs, baseProcs)
	}
	if o.userns {
		dirs = append(dirs, baseProc, baseSys)
	}

	for _, dir := range dirs {
		b.step("make base directory "+dir, unix.SYS_MKDIRAT, reg(regBase), str(dir), num(0o755))
	}
	b.step("make base file "+baseNull, unix.SYS_MKNODAT, reg(regBase), str(baseNull), num(unix.S_IFREG|0o644), zero())
	b.step("mount base", unix.SYS_MOVE_MOUNT, reg(regBase), str(""), here(), str("/"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	b.pivot("base", reg(regBase))
	b.leaveOldRoot("host's root")

	if o.shmSize == 0 {
		o.shmSize = DefaultShmSize
	}
	shm := []fsOption{{key: "mode", value: "1777"}, {key: "size", value: strconv.FormatInt(o.shmSize, 10)}}
	b.mask(o.label)
	b.inBase(baseNull, b.input(Input{Name: "mount /dev/null", Kind: InputMount, Path: "/dev/null", Propagation: unix.MS_PRIVATE}))
	b.fileSystem("shared memory", "tmpfs", attrs, labelled(shm, o.label), regMount)
	b.inBase(baseShm, reg(regMount))

	if o.userns {
		for _, dir := range []string{baseProc, baseSys} {
			b.inBase(dir, b.input(Input{Name: "mount /" + dir, Kind: InputMount, Path: "/" + dir, Propagation: unix.MS_PRIVATE}))
		}
	}
	if o.procfs {
		// A procfs shows the PID namespace of the mounting process. A joining
		// process would have to mount it where others see it, while it still
		// has the right to mount.
		b.fileSystem("pod's procfs", "proc", procAttrs, nil, regMount)
		b.inBase(baseProcs, reg(regMount))
	}
	b.setAttr("make base read-only", reg(regBase), 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
}

// mask mounts an empty file system at the base's /mask. The containers of a pod
// share it, and one with the right to mount could remount a tmpfs writable for
// all of them; an overlay without an upper layer stays read-only. It needs two
// layers, both empty.
func (b *builder) mask(label string) {
	attrs := uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	layers := []fsOption{{key: "lowerdir", value: "/" + baseMask + ":/" + baseRoot}}
	b.fileSystem("mask", "overlay", attrs, labelled(layers, label), regMount)
	b.inBase(baseMask, reg(regMount))
}

// labelled adds the SELinux label of all files to a file system's options.
func labelled(options []fsOption, label string) []fsOption {
	if label == "" {
		return options
	}
	return append(options, fsOption{key: "context", value: label})
}

func (b *builder) inBase(name string, mount Arg) {
	b.step("mount base "+name, unix.SYS_MOVE_MOUNT, mount, str(""), reg(regBase), str(name), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// pivot makes a mount the root; the old root is then on top of it.
func (b *builder) pivot(what string, root Arg) {
	b.step("enter "+what, unix.SYS_FCHDIR, root)
	b.step("pivot to "+what, unix.SYS_PIVOT_ROOT, str("."), str("."))
}

// leaveOldRoot detaches the previous root after [builder.pivot].
func (b *builder) leaveOldRoot(what string) {
	b.step("detach "+what, unix.SYS_UMOUNT2, str("."), num(unix.MNT_DETACH))
	b.step("enter /", unix.SYS_CHDIR, str("/"))
}
