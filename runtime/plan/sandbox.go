package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/pause"
)

// Sandbox returns the plan that makes a pod's namespaces and its base mount
// namespace. Its child waits at a last gate, so that the keeper can open the
// namespaces. Released, it exits, or with [SandboxOptions.PidNS] becomes the
// pause program, held as "pause".
func Sandbox(o SandboxOptions) (*Plan, error) {
	b := newBuilder(o.Name)
	flags := uint64(unix.CLONE_NEWNS)
	for _, ns := range []struct {
		is   bool
		flag uint64
	}{{o.NewNet, unix.CLONE_NEWNET}, {o.NewIPC, unix.CLONE_NEWIPC}, {o.NewUTS, unix.CLONE_NEWUTS}} {
		if ns.is {
			flags |= ns.flag
		}
	}

	late := uint64(0)
	if o.NewUser {
		if len(o.UIDMap) == 0 || len(o.GIDMap) == 0 {
			return nil, fmt.Errorf("%s: %w: a user namespace without id mappings", o.Name, ErrSpec)
		}
		b.plan.Clone.UIDMap, b.plan.Clone.GIDMap = o.UIDMap, o.GIDMap
		flags, late = unix.CLONE_NEWUSER, flags
	}
	if o.PidNS {
		flags |= unix.CLONE_NEWPID
	}

	b.plan.Clone.Flags = flags
	b.hide()
	if o.NewUser || o.Gate {
		b.wait("wait for the keeper")
	}

	b.joinCgroup(o.CgroupV2, o.CgroupTasks)
	if o.NewUser {
		b.becomeRoot()
		b.makeNamespaces(late)
	}

	b.step("make session", unix.SYS_SETSID)
	if o.NewUTS && o.Hostname != "" {
		b.hostname(o.Hostname, "")
	}
	if o.NewNet {
		b.loopbackUp()
	}

	b.sysctls(o.Sysctls)
	b.base(baseOptions{shmSize: o.ShmSize, label: o.MountLabel, userns: o.NewUser, procfs: o.PidNS})
	b.wait("let the keeper hold namespaces")
	if o.PidNS {
		b.pause(o)
	}

	return b.plan, nil
}

func (b *builder) hostname(name, domain string) {
	if name != "" {
		b.step("set host name "+name, unix.SYS_SETHOSTNAME, str(name), num(len(name)))
	}
	if domain != "" {
		b.step("set domain name "+domain, unix.SYS_SETDOMAINNAME, str(domain), num(len(domain)))
	}
}

// loopbackUp brings the loopback interface up; the kernel assigns its addresses.
func (b *builder) loopbackUp() {
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	copy(ifreq[unix.IFNAMSIZ:], words32(unix.IFF_UP | unix.IFF_RUNNING)[:2])
	b.step("open socket", unix.SYS_SOCKET, num(unix.AF_INET), num(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), zero()).save(regFile)
	b.step("bring up lo", unix.SYS_IOCTL, reg(regFile), num(unix.SIOCSIFFLAGS), data(ifreq))
	b.shut(regFile)
}

// sysctls writes kernel settings through the private procfs, which shows
// those of the namespaces that the process is in.
func (b *builder) sysctls(settings map[string]string) {
	keys := make([]string, 0, len(settings))
	for key := range settings {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		b.writeFile("set "+key+"="+settings[key], "sys/"+sysctlPath(key), settings[key])
	}
}

// sysctlPath is a setting's path. In "net.ipv4.conf.eth0/1.forwarding" dots
// separate directories and slashes mean dots; in
// "net/ipv4/conf/eth0.1/forwarding" it is the other way round.
func sysctlPath(key string) string {
	dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/')
	if slash >= 0 && (dot < 0 || slash < dot) {
		return key
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// pause becomes the init of the pod's PID namespace, without any privilege.
// Containers see it: its root is empty and read-only, and not the pod's base.
func (b *builder) pause(o SandboxOptions) {
	b.makeNamespaces(unix.CLONE_NEWNS)
	b.step("open base", unix.SYS_OPENAT, here(), str("/"), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), zero()).save(regBase)
	b.cloneMount("root of pause", reg(regBase), baseMask, 0, regMount)
	b.inBase(baseRoot, reg(regMount))
	b.pivot("root of pause", reg(regMount))
	b.leaveOldRoot("base")

	if o.ApparmorProfile != "" {
		b.confine(o.ApparmorProfile)
	}
	b.labelProgram(o.ProcessLabel)

	for fd := range 3 {
		b.step("null device on descriptor "+strconv.Itoa(fd), unix.SYS_DUP3, b.null(), num(fd), zero())
	}
	b.closeOthers(false)
	b.usualFiles()
	b.prctl("no new privileges", unix.PR_SET_NO_NEW_PRIVS, 1)
	b.become(o.User)
	b.capset(capSets{})

	// Any process of the same user may trace it, and use its system calls.
	b.step("load filter of pause", unix.SYS_SECCOMP, num(unix.SECCOMP_SET_MODE_FILTER), zero(), Arg{Kind: ArgFilter, Bytes: pause.Filter()})
	b.step("exec pause", unix.SYS_EXECVEAT, b.held("pause"), str(""), strs([]string{"pause"}), strs(nil), num(unix.AT_EMPTY_PATH))
}
