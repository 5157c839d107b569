package plan

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// terminal creates the container's terminal in its own devpts, and mounts it on
// /dev/console.
func (c *container) terminal() error {
	if !c.o.Terminal {
		return nil
	}
	if c.hasMount("/dev/pts") {
		c.step("open terminal", unix.SYS_OPENAT, reg(regPts), str("ptmx"), num(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC), zero()).save(regMaster)
	} else {
		c.open("open terminal", "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, noLinks, regMaster)
	}

	c.openSlave()
	if c.dev == devOwn {
		// The descriptor itself is mounted: its name may lead elsewhere by now.
		c.step("make /dev/console", unix.SYS_MKNODAT, reg(regDev), str("console"), num(unix.S_IFREG|0o600), zero()).ignore(unix.EEXIST)
		c.cloneMount("copy terminal", reg(regSlave), "", 0, regMount)
		c.step("open /dev/console", unix.SYS_OPENAT, reg(regDev), str("console"), num(unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC), zero()).save(regTarget)
		c.attach("mount /dev/console", reg(regMount), regTarget)
		c.shut(regTarget)
		c.shut(regMount)
	}

	return nil
}

// openSlave unlocks the terminal in regMaster, opens its slave, passes the
// master to the keeper and makes the slave the controlling terminal.
func (c *process) openSlave() {
	c.step("unlock terminal", unix.SYS_IOCTL, reg(regMaster), num(unix.TIOCSPTLCK), data(words32(0)))
	c.step("open terminal's other side", unix.SYS_IOCTL, reg(regMaster), num(unix.TIOCGPTPEER), num(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).save(regSlave)
	if box := c.p.ConsoleSize; box != nil {
		size := binary.NativeEndian.AppendUint16(nil, uint16(box.Height))
		size = binary.NativeEndian.AppendUint16(size, uint16(box.Width))
		c.step("size terminal", unix.SYS_IOCTL, reg(regMaster), num(unix.TIOCSWINSZ), data(append(size, 0, 0, 0, 0)))
	}
	c.step("give terminal to its user", unix.SYS_FCHOWN, reg(regSlave), num(c.p.User.UID), num(int64(-1)))
	if !c.exposed {
		c.step("control terminal", unix.SYS_IOCTL, reg(regSlave), num(unix.TIOCSCTTY), zero())
	}
	c.step("pass terminal to the keeper", unix.SYS_SENDMSG, Arg{Kind: ArgBack}, Arg{Kind: ArgPassFD, Int: int64(regMaster)}, num(unix.MSG_NOSIGNAL))
}
