package criu

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// checkFiles checks what the processes have open, or mapped, or are in. CRIU opens all
// of it as root.
func (i *Inventory) checkFiles(a *Allowed) error {
	for _, p := range i.processes {
		if err := i.checkOpen(p); err != nil {
			return fmt.Errorf("process %d: %w", p.GetPid(), err)
		}
	}
	for id, f := range i.files {
		if err := i.checkFile(a, f); err != nil {
			return fmt.Errorf("file %d: %w", id, err)
		}
	}
	return i.checkRemaps(a)
}

// checkOpen checks that what a process refers to is there, as what it says.
func (i *Inventory) checkOpen(p *process) error {
	if p.isGone() {
		return nil
	}
	seen := map[uint32]bool{}
	for _, fd := range p.open {
		if f := i.files[fd.GetId()]; f == nil || f.GetType() != fd.GetType() || seen[fd.GetFd()] {
			return wrong("descriptor %d is of no file, or there twice", fd.GetFd())
		}
		seen[fd.GetFd()] = true
	}
	for _, id := range []uint32{p.fs.GetCwdId(), p.fs.GetRootId(), p.memory.GetExeFileId()} {
		if f := i.files[id]; f.GetReg() == nil || f.GetReg().GetExt() {
			return wrong("its directory or program, file %d, is none of the container", id)
		}
	}
	return nil
}

// checkFile checks one open file by its type.
func (i *Inventory) checkFile(a *Allowed, f *fdinfo.FileEntry) error {
	may := a.mayGain().Has
	type check struct {
		there bool
		owner *fown.FownEntry
		check func() error
	}
	never := func(what string) func() error {
		return func() error { return forbidden("%s, which crisp does not restore", what) }
	}
	with := func(capability, what string) func() error {
		return func() error {
			if !may(capability) {
				return forbidden("%s, for which the container lacks %s", what, capability)
			}
			return nil
		}
	}
	fine := func() error { return nil }

	c, ok := map[fdinfo.FdTypes]check{
		fdinfo.FdTypes_REG:       {f.Reg != nil, f.GetReg().GetFown(), func() error { return i.checkRegular(a, f.Reg) }},
		fdinfo.FdTypes_PIPE:      {f.Pipe != nil, f.GetPipe().GetFown(), fine},
		fdinfo.FdTypes_FIFO:      {f.Fifo != nil, nil, func() error { return i.checkFIFO(f.Fifo.GetRegfId()) }},
		fdinfo.FdTypes_INETSK:    {f.Isk != nil, f.GetIsk().GetFown(), func() error { return checkInet(a, f.Isk) }},
		fdinfo.FdTypes_UNIXSK:    {f.Usk != nil, f.GetUsk().GetFown(), func() error { return i.checkUnix(a, f.Usk) }},
		fdinfo.FdTypes_EVENTFD:   {f.Efd != nil, f.GetEfd().GetFown(), fine},
		fdinfo.FdTypes_EVENTPOLL: {f.Epfd != nil, f.GetEpfd().GetFown(), fine},
		fdinfo.FdTypes_SIGNALFD:  {f.Sgfd != nil, f.GetSgfd().GetFown(), fine},
		fdinfo.FdTypes_PIDFD:     {f.Pidfd != nil, f.GetPidfd().GetFown(), fine},
		fdinfo.FdTypes_MEMFD:     {f.Memfd != nil, f.GetMemfd().GetFown(), fine},
		fdinfo.FdTypes_INOTIFY: {f.Ify != nil, f.GetIfy().GetFown(), func() error {
			// A watch is of a handle, which may be of any file on a disk that is mounted.
			if len(f.Ify.GetWd()) > 0 && !a.Trusted && !may("CAP_DAC_READ_SEARCH") {
				return forbidden("watches of files, in a checkpoint of nobody who is trusted")
			}
			return nil
		}},
		fdinfo.FdTypes_FANOTIFY: {f.Ffy != nil, f.GetFfy().GetFown(), with("CAP_SYS_ADMIN", "watches of mounts")},
		fdinfo.FdTypes_TIMERFD: {f.Tfd != nil, f.GetTfd().GetFown(), func() error {
			if clock := f.Tfd.GetClockid(); clock == unix.CLOCK_REALTIME_ALARM || clock == unix.CLOCK_BOOTTIME_ALARM {
				return with("CAP_WAKE_ALARM", "a timer that wakes the machine")()
			}
			return nil
		}},
		fdinfo.FdTypes_TTY:       {f.Tty != nil, f.GetTty().GetFown(), func() error { return i.checkTerminal(f.Tty.GetTtyInfoId()) }},
		fdinfo.FdTypes_NETLINKSK: {f.Nlsk != nil, f.GetNlsk().GetFown(), func() error { return checkNetlink(a, f.Nlsk.GetProtocol(), f.Nlsk.GetOpts()) }},
		fdinfo.FdTypes_PACKETSK:  {f.Psk != nil, f.GetPsk().GetFown(), with("CAP_NET_RAW", "a socket for packets")},
		fdinfo.FdTypes_TUNF:      {f.Tunf != nil, nil, with("CAP_NET_ADMIN", "a network device")},
		fdinfo.FdTypes_NS:        {f.Nsf != nil, nil, func() error { return i.checkNamespaceFile(f.Nsf.GetNsId()) }},
		fdinfo.FdTypes_EXT:       {true, nil, never("a file of a plugin")},
		fdinfo.FdTypes_BPFMAP:    {true, nil, never("a BPF map")},
	}[f.GetType()]
	if !ok || !c.there {
		return wrong("it is of type %v", f.GetType())
	}
	if err := checkOwner(a, c.owner); err != nil {
		return err
	}
	return c.check()
}

// checkOwner checks as whom the kernel signals the owner of a file.
func checkOwner(a *Allowed, o *fown.FownEntry) error {
	if o.GetPid() == 0 || !a.NoNewPrivileges || a.mayGain().Has("CAP_SETUID") {
		return nil
	}
	if o.GetUid() != a.UID || o.GetEuid() != a.UID {
		return forbidden("its owner is signalled as user %d", o.GetEuid())
	}
	return nil
}

// givenFile is how [Externals] names files.
var givenFile = regexp.MustCompile(`^file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]$`)

// checkRegular checks a file with a path.
func (i *Inventory) checkRegular(a *Allowed, f *regfile.RegFileEntry) error {
	kind := f.GetMode() & unix.S_IFMT
	if f.GetExt() {
		// The caller gives the null device for it, whatever it was.
		if !givenFile.MatchString(f.GetName()) {
			return wrong("it is named %.100q", f.GetName())
		}
		return nil
	}
	m := i.mount(f.GetMntId())
	switch {
	case !isClean(f.GetName()) || m == nil:
		return forbidden("%.200q, which is on no mount of the container", f.GetName())
	case f.Mode == nil:
		return wrong("they do not say of what type %.200q is", f.GetName())
	case kind == unix.S_IFCHR || kind == unix.S_IFBLK:
		// CRIU opens what is there. In /dev that is what the container was started with, or
		// what is in its tmpfs, whose devices are checked.
		known := slices.ContainsFunc(a.Devices, func(d AllowedDevice) bool { return d.Path == f.GetName() })
		if terminal := strings.HasPrefix(f.GetName(), "/dev/pts/"); !known && !terminal && f.GetName() != "/dev/ptmx" {
			return forbidden("device %.200q, which the container has not", f.GetName())
		}
	case kind != unix.S_IFREG && kind != unix.S_IFDIR && kind != unix.S_IFIFO && kind != unix.S_IFLNK && kind != unix.S_IFSOCK:
		return wrong("%.200q has mode %o", f.GetName(), f.GetMode())
	}

	const path = unix.O_PATH
	if m.GetExtKey() != "" && f.GetFlags()&path == 0 && kind != unix.S_IFDIR && !a.Trusted && !a.mayGain().Has("CAP_DAC_OVERRIDE") {
		return forbidden("%.200q of a volume is open, in a checkpoint of nobody who is trusted", f.GetName())
	}
	return nil
}

func (i *Inventory) checkFIFO(id uint32) error {
	if f := i.files[id].GetReg(); f == nil || f.GetExt() {
		return wrong("a FIFO without a path")
	}
	return nil
}

// checkTerminal checks that a terminal is a pseudo-terminal.
func (i *Inventory) checkTerminal(id uint32) error {
	info, ok := i.terminals[id]
	if !ok {
		return wrong("there is no terminal %d", id)
	}
	switch info.GetType() {
	case tty.TtyType_PTY, tty.TtyType_CTTY, tty.TtyType_EXT_TTY:
		return nil
	}
	return forbidden("a terminal of the node's, of type %v", info.GetType())
}

// checkNamespaceFile checks that an open namespace is one of the container's.
func (i *Inventory) checkNamespaceFile(id uint32) error {
	ids := i.processes[0].ids
	if !slices.Contains([]uint32{
		ids.GetPidNsId(), ids.GetNetNsId(), ids.GetIpcNsId(), ids.GetUtsNsId(), ids.GetMntNsId(), ids.GetUserNsId(), ids.GetCgroupNsId(), ids.GetTimeNsId(),
	}, id) {
		return forbidden("a namespace that is not the container's")
	}
	return nil
}

// checkInet checks a socket of the internet protocols.
func checkInet(a *Allowed, s *sk_inet.InetSkEntry) error {
	may := a.mayGain().Has
	ownNetwork := a.Namespaces[specs.NetworkNamespace]
	switch {
	case s.GetFamily() != unix.AF_INET && s.GetFamily() != unix.AF_INET6:
		return wrong("a socket of family %d", s.GetFamily())
	case s.GetType() == unix.SOCK_RAW && !may("CAP_NET_RAW"):
		return forbidden("a raw socket, for which the container lacks CAP_NET_RAW")
	case s.GetType() != unix.SOCK_RAW && s.GetSrcPort() != 0 && s.GetSrcPort() < a.FirstPort && !may("CAP_NET_BIND_SERVICE"):
		return forbidden("a socket at port %d, for which the container lacks CAP_NET_BIND_SERVICE", s.GetSrcPort())
	case s.GetType() == unix.SOCK_STREAM && s.GetState() != tcpListening && s.GetState() >= tcpEstablished && s.GetDstPort() != 0 &&
		!ownNetwork && !a.Trusted && !may("CAP_NET_ADMIN"):
		// CRIU makes it without the peer.
		return forbidden("a connection of the node's, in a checkpoint of nobody who is trusted")
	}
	return checkSocket(a, s.GetOpts())
}

// maxBuffer bounds the buffers of a socket in bytes, which CRIU sets beyond the node's
// limits.
const maxBuffer = 64 << 20

func checkSocket(a *Allowed, o *sk_opts.SkOptsEntry) error {
	const lastPriority = 6
	if a.mayGain().Has("CAP_NET_ADMIN") {
		return nil
	}
	switch {
	case o.GetSoMark() != 0, o.GetSoPriority() > lastPriority:
		return forbidden("a socket with a mark or priority, for which the container lacks CAP_NET_ADMIN")
	case o.GetSoSndbuf() > maxBuffer || o.GetSoRcvbuf() > maxBuffer:
		return forbidden("a socket with buffers of more than %d bytes", maxBuffer)
	}
	return nil
}

func checkNetlink(a *Allowed, protocol uint32, o *sk_opts.SkOptsEntry) error {
	switch protocol {
	case unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG, unix.NETLINK_KOBJECT_UEVENT, unix.NETLINK_GENERIC:
		return checkSocket(a, o)
	}
	if !a.mayGain().Has("CAP_NET_ADMIN") {
		return forbidden("a netlink socket of protocol %d, for which the container lacks CAP_NET_ADMIN", protocol)
	}
	return nil
}

// checkUnix checks a socket of the machine.
func (i *Inventory) checkUnix(a *Allowed, s *sk_unix.UnixSkEntry) error {
	// Of CRIU's criu/include/sk-unix.h: connected to one outside, by a plugin, or inherited.
	const external, callback, inherited = 1 << 0, 1 << 2, 1 << 3
	if s.GetUflags()&(external|callback|inherited) != 0 {
		return forbidden("a socket that is connected to one outside")
	}

	// A name that begins with zero is in no file system.
	if name := string(s.GetName()); name != "" && name[0] != 0 {
		name = strings.TrimRight(name, "\x00")
		m := i.mount(s.GetMntId())
		dir := s.GetNameDir()
		switch {
		case hasDots(name) || strings.ContainsRune(name, 0) || m == nil || dir != "" && !isClean(dir) || dir == "" && !strings.HasPrefix(name, "/"):
			return forbidden("socket %.200q, which is on no mount of the container", name)
		case m.GetExtKey() != "" && !a.Trusted && !a.mayGain().Has("CAP_DAC_OVERRIDE"):
			return forbidden("socket %.200q is in a volume, in a checkpoint of nobody who is trusted", name)
		}
	}
	return checkSocket(a, s.GetOpts())
}

// checkRemaps checks what is done for files that have lost their names: CRIU makes them
// again for a moment, or removes the name that it had given them.
func (i *Inventory) checkRemaps(a *Allowed) error {
	for _, r := range i.remaps {
		f := i.files[r.GetOrigId()].GetReg()
		if f == nil || f.GetExt() {
			return wrong("file %d has lost its name, and is none", r.GetOrigId())
		}
		if m := i.mount(f.GetMntId()); m.GetExtKey() != "" && !a.Trusted && !a.mayGain().Has("CAP_DAC_OVERRIDE") {
			return forbidden("%.200q of a volume has lost its name, in a checkpoint of nobody who is trusted", f.GetName())
		}
	}
	return nil
}
