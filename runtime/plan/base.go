package plan

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// The base of a pod is a mount namespace that holds next to nothing, so that
// copying it for each container is cheap and no path of the host's is ever in
// a container's reach:
//
//	/root   an empty folder on which a container's root is mounted
//	/shm    the pod's shared memory
//	/mask   an empty, read-only file system that covers masked folders
//	/null   the host's null device, which covers masked files
//	/proc   /sys, in a user namespace only: the kernel lets such a namespace
//	        mount these afresh only where it sees them already
const (
	baseRoot = "root"
	baseShm  = "shm"
	baseMask = "mask"
	baseNull = "null"
	baseProc = "proc"
	baseSys  = "sys"
)

// base turns the copy of the host's mounts into a pod's base. What containers
// see of it gets the label, if there is one.
func (b *builder) base(shmSize int64, label string, userns bool) {
	b.step("make mounts private", unix.SYS_MOUNT, zero(), str("/"), zero(), num(uint64(unix.MS_REC|unix.MS_PRIVATE)), zero())
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	b.fileSystem("base", "tmpfs", attrs, []fsOption{{key: "mode", value: "755"}, {key: "size", value: "64k"}, {key: "nr_inodes", value: "16"}}, regBase)
	dirs := []string{baseRoot, baseShm, baseMask}
	if userns {
		dirs = append(dirs, baseProc, baseSys)
	}
	for _, dir := range dirs {
		b.step("make base folder "+dir, unix.SYS_MKDIRAT, reg(regBase), str(dir), num(0o755))
	}
	b.step("make base file "+baseNull, unix.SYS_MKNODAT, reg(regBase), str(baseNull), num(unix.S_IFREG|0o644), zero())
	b.step("mount base", unix.SYS_MOVE_MOUNT, reg(regBase), str(""), here(), str("/"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	b.pivot("base", reg(regBase))
	b.leaveOldRoot("host's root")

	if shmSize == 0 {
		shmSize = DefaultShmSize
	}
	shm := []fsOption{{key: "mode", value: "1777"}, {key: "size", value: strconv.FormatInt(shmSize, 10)}}
	b.fileSystem("shared memory", "tmpfs", attrs, labelled(shm, label), regMount)
	b.inBase(baseShm, reg(regMount))
	mask := []fsOption{{key: "ro", flag: true}, {key: "mode", value: "755"}, {key: "size", value: "4k"}, {key: "nr_inodes", value: "2"}}
	b.fileSystem("mask", "tmpfs", attrs|unix.MOUNT_ATTR_RDONLY, labelled(mask, label), regMount)
	b.inBase(baseMask, reg(regMount))
	b.inBase(baseNull, b.input(Input{Name: "mount /dev/null", Kind: InputMount, Path: "/dev/null", Propagation: unix.MS_PRIVATE}))
	if userns {
		for _, dir := range []string{baseProc, baseSys} {
			b.inBase(dir, b.input(Input{Name: "mount /" + dir, Kind: InputMount, Path: "/" + dir, Propagation: unix.MS_PRIVATE}))
		}
	}
}

// labelled adds to a file system's options the SELinux label of all its files.
func labelled(options []fsOption, label string) []fsOption {
	if label == "" {
		return options
	}
	return append(options, fsOption{key: "context", value: label})
}

func (b *builder) inBase(name string, mount Arg) {
	b.step("mount base "+name, unix.SYS_MOVE_MOUNT, mount, str(""), reg(regBase), str(name), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// pivot makes a mount the root; the old root then lies on top of it.
func (b *builder) pivot(what string, root Arg) {
	b.step("enter "+what, unix.SYS_FCHDIR, root)
	b.step("pivot to "+what, unix.SYS_PIVOT_ROOT, str("."), str("."))
}

// leaveOldRoot detaches the root that was before [builder.pivot].
func (b *builder) leaveOldRoot(what string) {
	b.step("detach "+what, unix.SYS_UMOUNT2, str("."), num(unix.MNT_DETACH))
	b.step("enter /", unix.SYS_CHDIR, str("/"))
}
