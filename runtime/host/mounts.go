package host

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

// mounts probes the mount system calls. Nothing is attached anywhere.
func (p *prober) mounts() {
	p.facts.RecursiveReadOnly = p.setattr("recursive read-only mounts", unix.AT_RECURSIVE,
		unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	p.facts.IDMapMounts = p.setattr("id-mapped mounts", 0,
		unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: math.MaxInt32})
	p.cloneDetached()
	p.overlay()
}

// setattr calls mount_setattr on invalid descriptors: a kernel that supports
// the request returns EBADF.
func (p *prober) setattr(what string, flags uint, attr unix.MountAttr) Answer {
	err := unix.MountSetattr(-1, "", flags|unix.AT_EMPTY_PATH, &attr)
	switch {
	case errors.Is(err, unix.EBADF):
		return Yes
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return No
	}
	p.problem(what, err)
	return Unknown
}

func (p *prober) cloneDetached() {
	const what = "clones of detached mounts"
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	first, err := unix.OpenTree(unix.AT_FDCWD, "/", flags)
	if err != nil {
		p.problem(what, err)
		return
	}
	defer unix.Close(first)

	second, err := unix.OpenTree(first, "", flags|unix.AT_EMPTY_PATH)
	switch {
	case err == nil:
		unix.Close(second)
		p.facts.CloneDetached = Yes
	case errors.Is(err, unix.EINVAL):
		p.facts.CloneDetached = No
	default:
		p.problem(what, err)
	}
}

// overlay answers whether there are overlays. How the kernel takes their layers is
// for image/rootfs to ask.
func (p *prober) overlay() {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		p.facts.Overlay = No
		return
	}
	if err != nil {
		p.problem("overlay", err)
		return
	}
	unix.Close(fd)
	p.facts.Overlay = Yes
}
