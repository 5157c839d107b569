package plan

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// devKind is the kind of the container's /dev.
type devKind uint8

const (
	// devRoot is a directory of the root file system.
	devRoot devKind = iota
	// devOwn is a new file system.
	devOwn
	// devBound is a bind mount of the host's, which is not changed.
	devBound
)

// defaultDevices are in every container.
var defaultDevices = []struct {
	name         string
	major, minor int64
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

var devLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
}

// fillDev creates the devices and links that every container has in the new
// /dev, before anything is mounted there.
func (c *container) fillDev() {
	for _, d := range c.s.Linux.Devices {
		// /dev/ptmx is a link.
		if name, ok := strings.CutPrefix(clean(d.Path), "/dev/"); ok && name != "ptmx" {
			c.makeDevice(name, d)
		}
	}

	for _, d := range defaultDevices {
		if !c.hasDevice("/dev/" + d.name) {
			c.makeDevice(d.name, specs.LinuxDevice{Path: "/dev/" + d.name, Type: "c", Major: d.major, Minor: d.minor})
		}
	}

	for _, l := range devLinks {
		c.step("link /dev/"+l[0], unix.SYS_SYMLINKAT, str(l[1]), reg(regDev), str(l[0])).ignore(unix.EEXIST)
	}
}

// hasDevice reports whether the spec has a device at a path.
func (c *container) hasDevice(p string) bool {
	for _, d := range c.s.Linux.Devices {
		if clean(d.Path) == p {
			return true
		}
	}
	return false
}

// indexOf is the index of one of the spec's devices, -1 for another.
func (c *container) indexOf(d specs.LinuxDevice) int {
	return slices.IndexFunc(c.s.Linux.Devices, func(o specs.LinuxDevice) bool { return clean(o.Path) == clean(d.Path) })
}

// devices creates the spec's other devices.
func (c *container) devices() error {
	for _, d := range c.s.Linux.Devices {
		if _, ok := deviceTypes[d.Type]; !ok {
			return fmt.Errorf("%w: device %s of type %q", ErrSpec, d.Path, d.Type)
		}
	}

	if c.dev == devRoot {
		c.open("open /dev", "/dev", unix.O_PATH|unix.O_DIRECTORY, noLinks, regDev)
		c.fillDev()
	}

	for _, d := range c.s.Linux.Devices {
		p := clean(d.Path)
		if below(p, "/dev") {
			continue
		}

		parent, name := path.Split(p)
		parent = clean(parent)
		what := "device " + p
		c.makeDirs(what, parent)
		c.open(what+": open "+parent, parent, unix.O_PATH|unix.O_DIRECTORY, inRoot, regDir)
		c.node(what, regDir, name, d)
		c.shut(regDir)
	}

	return nil
}

var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

// makeDevice creates a device at the path name below /dev. The content of /dev
// is ours so far, so no link can lead elsewhere.
func (c *container) makeDevice(name string, d specs.LinuxDevice) {
	what := "device /dev/" + name
	for i, r := range name {
		if r == '/' {
			c.step(what+": make directory "+name[:i], unix.SYS_MKDIRAT, reg(regDev), str(name[:i]), num(0o755)).ignore(unix.EEXIST)
		}
	}
	c.node(what, regDev, name, d)
}

// node creates a device node. In a user namespace, where mknod is not
// permitted, one that the launcher has made is mounted, or else the host's.
func (c *container) node(what string, dir Reg, name string, d specs.LinuxDevice) {
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	if c.userns() && d.Type != "p" {
		c.step(what+": make file", unix.SYS_MKNODAT, reg(dir), str(name), num(unix.S_IFREG|0o644), zero()).ignore(unix.EEXIST)
		c.step(what+": open target", unix.SYS_OPENAT, reg(dir), str(name), num(unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC), zero()).save(regTarget)
		if i := c.indexOf(d); i >= 0 && c.o.DeviceNodes {
			c.cloneMount(what+": copy", c.held("devices"), strconv.Itoa(i), 0, regMount)
			c.attach(what+": bind", reg(regMount), regTarget)
			c.shut(regMount)
		} else {
			source := clean(d.Path)
			c.attach(what+": bind", c.input(Input{Name: "mount " + source, Kind: InputMount, Path: source, Propagation: unix.MS_PRIVATE}), regTarget)
		}
		c.shut(regTarget)
		return
	}

	dev := uint64(0)
	if d.Type != "p" {
		dev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	}

	made := c.step(what, unix.SYS_MKNODAT, reg(dir), str(name), num(deviceTypes[d.Type]|mode), num(dev))
	if c.dev == devRoot || c.hasDevice(clean(d.Path)) {
		made.ignore(unix.EEXIST) // an existing node is not changed
	}
	if d.UID == nil && d.GID == nil {
		return
	}

	uid, gid := uint32(0), uint32(0)
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}

	if uid != 0 || gid != 0 {
		made.save(regKind)
		c.step(what+": give to its user", unix.SYS_FCHOWNAT, reg(dir), str(name), num(uid), num(gid), num(unix.AT_SYMLINK_NOFOLLOW)).
			when(IfSet, regKind)
	}
}
