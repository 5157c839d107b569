package plan

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// format formats an argument by its meaning in a system call.
type format func(int64) string

// signature describes how to print a system call.
type signature struct {
	name string
	args []format
	// memory formats the structure that the call takes.
	memory func([]byte) string
}

// flagTable formats a number as a set of flags.
type flagTable []struct {
	bit  int64
	name string
}

func (t flagTable) text(v int64) string {
	var names []string
	for _, f := range t {
		if v&f.bit == f.bit && f.bit != 0 {
			names = append(names, f.name)
			v &^= f.bit
		}
	}
	if v != 0 || len(names) == 0 {
		names = append(names, number(v))
	}
	return strings.Join(names, "|")
}

// choice formats a number as one of a list of values.
func (t flagTable) choice(v int64) string {
	for _, f := range t {
		if v == f.bit {
			return f.name
		}
	}
	return number(v)
}

// number formats small numbers in decimal and masks in hexadecimal.
func number(v int64) string {
	if v < 1<<16 && v > -1<<16 {
		return strconv.FormatInt(v, 10)
	}
	return fmt.Sprintf("%#x", uint64(v))
}

func octal(v int64) string { return fmt.Sprintf("%#o", v) }

func directory(v int64) string {
	if v == unix.AT_FDCWD {
		return "."
	}
	return number(v)
}

// device formats a device number.
func device(v int64) string {
	return fmt.Sprintf("%d:%d", unix.Major(uint64(v)), unix.Minor(uint64(v)))
}

// openHowText formats a struct open_how.
func openHowText(b []byte) string {
	if len(b) != 24 {
		return bytesText(b)
	}
	word := func(i int) int64 { return int64(binary.NativeEndian.Uint64(b[8*i:])) }
	return fmt.Sprintf("{%s %#o %s}", openNames.text(word(0)), word(1), resolveNames.text(word(2)))
}

// mountAttrText formats a struct mount_attr.
func mountAttrText(b []byte) string {
	if len(b) != 32 {
		return bytesText(b)
	}
	word := func(i int) int64 { return int64(binary.NativeEndian.Uint64(b[8*i:])) }
	return fmt.Sprintf("{set %s clear %s propagation %s}", attrNames.text(word(0)), attrNames.text(word(1)), mountNames.text(word(2)))
}

// signatureOf returns how to print a call. One that is not listed is printed by number.
func signatureOf(call uintptr) signature {
	for _, c := range calls {
		if c.call == call {
			return c.signature
		}
	}
	return signature{name: fmt.Sprintf("syscall%d", call)}
}

// The tables are read-only.
var calls = []struct {
	call uintptr
	signature
}{
	{unix.SYS_CAPSET, signature{name: "capset"}},
	{unix.SYS_CHDIR, signature{name: "chdir"}},
	{unix.SYS_CHROOT, signature{name: "chroot"}},
	{unix.SYS_CLONE, signature{name: "clone", args: []format{cloneNames.text}}},
	{unix.SYS_CLONE3, signature{name: "clone3"}},
	{unix.SYS_CLOSE, signature{name: "close"}},
	{unix.SYS_CLOSE_RANGE, signature{name: "close_range", args: []format{nil, nil, closeRangeNames.text}}},
	{unix.SYS_DUP3, signature{name: "dup3", args: []format{nil, nil, openNames.text}}},
	{unix.SYS_EXECVE, signature{name: "execve"}},
	{unix.SYS_EXECVEAT, signature{name: "execveat", args: []format{nil, nil, nil, nil, atNames.text}}},
	{unix.SYS_EXIT_GROUP, signature{name: "exit_group"}},
	{unix.SYS_FACCESSAT2, signature{name: "faccessat2", args: []format{directory, nil, octal, atNames.text}}},
	{unix.SYS_FCHDIR, signature{name: "fchdir"}},
	{unix.SYS_FCHMOD, signature{name: "fchmod", args: []format{nil, octal}}},
	{unix.SYS_FCHMODAT, signature{name: "fchmodat", args: []format{directory, nil, octal}}},
	{unix.SYS_FCHOWN, signature{name: "fchown"}},
	{unix.SYS_FCHOWNAT, signature{name: "fchownat", args: []format{directory, nil, nil, nil, atNames.text}}},
	{unix.SYS_FSCONFIG, signature{name: "fsconfig", args: []format{nil, fsconfigNames.choice}}},
	{unix.SYS_FSETXATTR, signature{name: "fsetxattr"}},
	{sysFstatat, signature{name: "newfstatat", args: []format{directory, nil, nil, atNames.text}}},
	{unix.SYS_FSTATFS, signature{name: "fstatfs"}},
	{unix.SYS_FSMOUNT, signature{name: "fsmount", args: []format{nil, fsmountNames.text, attrNames.text}}},
	{unix.SYS_FSOPEN, signature{name: "fsopen", args: []format{nil, fsopenNames.text}}},
	{unix.SYS_GETCWD, signature{name: "getcwd"}},
	{unix.SYS_GETPID, signature{name: "getpid"}},
	{unix.SYS_GETUID, signature{name: "getuid"}},
	{unix.SYS_IOCTL, signature{name: "ioctl", args: []format{nil, ioctlNames.choice, openNames.text}}},
	{unix.SYS_IOPRIO_SET, signature{name: "ioprio_set"}},
	{unix.SYS_KEYCTL, signature{name: "keyctl", args: []format{keyctlNames.choice}}},
	{unix.SYS_KILL, signature{name: "kill"}},
	{unix.SYS_MKDIRAT, signature{name: "mkdirat", args: []format{directory, nil, octal}}},
	{unix.SYS_MKNODAT, signature{name: "mknodat", args: []format{directory, nil, octal, device}}},
	{unix.SYS_MOUNT, signature{name: "mount", args: []format{nil, nil, nil, mountNames.text}}},
	{unix.SYS_MOUNT_SETATTR, signature{name: "mount_setattr", args: []format{directory, nil, atNames.text}, memory: mountAttrText}},
	{unix.SYS_MOVE_MOUNT, signature{name: "move_mount", args: []format{directory, nil, directory, nil, moveMountNames.text}}},
	{unix.SYS_OPENAT, signature{name: "openat", args: []format{directory, nil, openNames.text, octal}}},
	{unix.SYS_OPENAT2, signature{name: "openat2", args: []format{directory}, memory: openHowText}},
	{unix.SYS_OPEN_TREE, signature{name: "open_tree", args: []format{directory, nil, openTreeNames.text}}},
	{unix.SYS_PERSONALITY, signature{name: "personality"}},
	{unix.SYS_PIVOT_ROOT, signature{name: "pivot_root"}},
	{unix.SYS_PPOLL, signature{name: "ppoll"}},
	{unix.SYS_PRCTL, signature{name: "prctl", args: []format{prctlNames.choice}}},
	{unix.SYS_PREAD64, signature{name: "pread64"}},
	{unix.SYS_PRLIMIT64, signature{name: "prlimit64", args: []format{nil, rlimitNames.choice}}},
	{unix.SYS_READ, signature{name: "read"}},
	{unix.SYS_READLINKAT, signature{name: "readlinkat", args: []format{directory}}},
	{unix.SYS_SCHED_SETAFFINITY, signature{name: "sched_setaffinity"}},
	{unix.SYS_SCHED_SETATTR, signature{name: "sched_setattr"}},
	{unix.SYS_SECCOMP, signature{name: "seccomp", args: []format{seccompOpNames.choice, seccompNames.text}}},
	{unix.SYS_SENDMSG, signature{name: "sendmsg", args: []format{nil, nil, sendNames.text}}},
	{unix.SYS_SETDOMAINNAME, signature{name: "setdomainname"}},
	{unix.SYS_SETGROUPS, signature{name: "setgroups"}},
	{unix.SYS_SETHOSTNAME, signature{name: "sethostname"}},
	{unix.SYS_SETNS, signature{name: "setns", args: []format{nil, cloneNames.text}}},
	{unix.SYS_SETRESGID, signature{name: "setresgid"}},
	{unix.SYS_SETRESUID, signature{name: "setresuid"}},
	{unix.SYS_SETSID, signature{name: "setsid"}},
	{unix.SYS_SET_MEMPOLICY, signature{name: "set_mempolicy"}},
	{unix.SYS_SOCKET, signature{name: "socket"}},
	{unix.SYS_SYMLINKAT, signature{name: "symlinkat", args: []format{nil, directory}}},
	{unix.SYS_UMASK, signature{name: "umask", args: []format{octal}}},
	{unix.SYS_UMOUNT2, signature{name: "umount2", args: []format{nil, umountNames.text}}},
	{unix.SYS_UNLINKAT, signature{name: "unlinkat", args: []format{directory, nil, atNames.text}}},
	{unix.SYS_UNSHARE, signature{name: "unshare", args: []format{cloneNames.text}}},
	{unix.SYS_WRITE, signature{name: "write"}},
}

var cloneNames = flagTable{
	{unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"},
	{unix.CLONE_NEWNET, "CLONE_NEWNET"}, {unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"},
	{unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"}, {unix.CLONE_PARENT, "CLONE_PARENT"},
	{unix.CLONE_FS, "CLONE_FS"}, {unix.CLONE_FILES, "CLONE_FILES"}, {int64(unix.SIGCHLD), "SIGCHLD"},
}

var openNames = flagTable{
	{unix.O_WRONLY, "O_WRONLY"}, {unix.O_RDWR, "O_RDWR"}, {unix.O_CREAT, "O_CREAT"}, {unix.O_EXCL, "O_EXCL"},
	{unix.O_TRUNC, "O_TRUNC"}, {unix.O_APPEND, "O_APPEND"}, {unix.O_NONBLOCK, "O_NONBLOCK"}, {unix.O_NOCTTY, "O_NOCTTY"},
	{unix.O_DIRECTORY, "O_DIRECTORY"}, {unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_PATH, "O_PATH"}, {unix.O_CLOEXEC, "O_CLOEXEC"},
}

var atNames = flagTable{
	{unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"}, {unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"},
	{unix.AT_EACCESS, "AT_EACCESS"},
}

var closeRangeNames = flagTable{{unix.CLOSE_RANGE_CLOEXEC, "CLOSE_RANGE_CLOEXEC"}, {unix.CLOSE_RANGE_UNSHARE, "CLOSE_RANGE_UNSHARE"}}

var fsopenNames = flagTable{{unix.FSOPEN_CLOEXEC, "FSOPEN_CLOEXEC"}}

var fsmountNames = flagTable{{unix.FSMOUNT_CLOEXEC, "FSMOUNT_CLOEXEC"}}

var fsconfigNames = flagTable{
	{unix.FSCONFIG_SET_FLAG, "FSCONFIG_SET_FLAG"}, {unix.FSCONFIG_SET_STRING, "FSCONFIG_SET_STRING"},
	{unix.FSCONFIG_SET_FD, "FSCONFIG_SET_FD"}, {unix.FSCONFIG_CMD_CREATE, "FSCONFIG_CMD_CREATE"},
	{unix.FSCONFIG_CMD_RECONFIGURE, "FSCONFIG_CMD_RECONFIGURE"},
}

var attrNames = flagTable{
	{unix.MOUNT_ATTR_RDONLY, "MOUNT_ATTR_RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "MOUNT_ATTR_NOSUID"},
	{unix.MOUNT_ATTR_NODEV, "MOUNT_ATTR_NODEV"}, {unix.MOUNT_ATTR_NOEXEC, "MOUNT_ATTR_NOEXEC"},
	{unix.MOUNT_ATTR_STRICTATIME, "MOUNT_ATTR_STRICTATIME"}, {unix.MOUNT_ATTR_NOATIME, "MOUNT_ATTR_NOATIME"},
	{unix.MOUNT_ATTR_NODIRATIME, "MOUNT_ATTR_NODIRATIME"}, {unix.MOUNT_ATTR_IDMAP, "MOUNT_ATTR_IDMAP"},
	{unix.MOUNT_ATTR_NOSYMFOLLOW, "MOUNT_ATTR_NOSYMFOLLOW"},
}

var mountNames = flagTable{
	{unix.MS_RDONLY, "MS_RDONLY"}, {unix.MS_NOSUID, "MS_NOSUID"}, {unix.MS_NODEV, "MS_NODEV"}, {unix.MS_NOEXEC, "MS_NOEXEC"},
	{unix.MS_REMOUNT, "MS_REMOUNT"}, {unix.MS_BIND, "MS_BIND"}, {unix.MS_REC, "MS_REC"}, {unix.MS_PRIVATE, "MS_PRIVATE"},
	{unix.MS_SLAVE, "MS_SLAVE"}, {unix.MS_SHARED, "MS_SHARED"}, {unix.MS_UNBINDABLE, "MS_UNBINDABLE"},
	{unix.MS_NOATIME, "MS_NOATIME"}, {unix.MS_RELATIME, "MS_RELATIME"},
}

var moveMountNames = flagTable{
	{unix.MOVE_MOUNT_F_EMPTY_PATH, "MOVE_MOUNT_F_EMPTY_PATH"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "MOVE_MOUNT_T_EMPTY_PATH"},
}

var openTreeNames = flagTable{
	{unix.OPEN_TREE_CLONE, "OPEN_TREE_CLONE"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"}, {unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"},
	{unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"}, {unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLOEXEC"},
}

var sendNames = flagTable{{unix.MSG_NOSIGNAL, "MSG_NOSIGNAL"}}

var resolveNames = flagTable{
	{unix.RESOLVE_BENEATH, "RESOLVE_BENEATH"}, {unix.RESOLVE_IN_ROOT, "RESOLVE_IN_ROOT"},
	{unix.RESOLVE_NO_MAGICLINKS, "RESOLVE_NO_MAGICLINKS"}, {unix.RESOLVE_NO_SYMLINKS, "RESOLVE_NO_SYMLINKS"},
	{unix.RESOLVE_NO_XDEV, "RESOLVE_NO_XDEV"},
}

var umountNames = flagTable{{unix.MNT_DETACH, "MNT_DETACH"}, {unix.MNT_FORCE, "MNT_FORCE"}, {unix.UMOUNT_NOFOLLOW, "UMOUNT_NOFOLLOW"}}

var prctlNames = flagTable{
	{unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"}, {unix.PR_CAPBSET_DROP, "PR_CAPBSET_DROP"}, {unix.PR_CAP_AMBIENT, "PR_CAP_AMBIENT"},
	{unix.PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS"}, {unix.PR_SET_DUMPABLE, "PR_SET_DUMPABLE"}, {unix.PR_SET_SECUREBITS, "PR_SET_SECUREBITS"},
	{unix.PR_SET_PDEATHSIG, "PR_SET_PDEATHSIG"}, {unix.PR_SET_NAME, "PR_SET_NAME"}, {unix.PR_SET_MEMORY_MERGE, "PR_SET_MEMORY_MERGE"},
}

var seccompOpNames = flagTable{{unix.SECCOMP_SET_MODE_FILTER, "SECCOMP_SET_MODE_FILTER"}}

var seccompNames = flagTable{
	{unix.SECCOMP_FILTER_FLAG_TSYNC, "SECCOMP_FILTER_FLAG_TSYNC"}, {unix.SECCOMP_FILTER_FLAG_LOG, "SECCOMP_FILTER_FLAG_LOG"},
	{unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, "SECCOMP_FILTER_FLAG_SPEC_ALLOW"},
}

var keyctlNames = flagTable{{unix.KEYCTL_JOIN_SESSION_KEYRING, "KEYCTL_JOIN_SESSION_KEYRING"}, {unix.KEYCTL_SETPERM, "KEYCTL_SETPERM"}}

var ioctlNames = flagTable{
	{unix.TIOCSCTTY, "TIOCSCTTY"}, {unix.TIOCSPTLCK, "TIOCSPTLCK"}, {unix.TIOCGPTPEER, "TIOCGPTPEER"}, {unix.TIOCSWINSZ, "TIOCSWINSZ"},
	{unix.SIOCGIFFLAGS, "SIOCGIFFLAGS"}, {unix.SIOCSIFFLAGS, "SIOCSIFFLAGS"},
}

var rlimitNames = flagTable{
	{unix.RLIMIT_AS, "RLIMIT_AS"}, {unix.RLIMIT_CORE, "RLIMIT_CORE"}, {unix.RLIMIT_CPU, "RLIMIT_CPU"}, {unix.RLIMIT_DATA, "RLIMIT_DATA"},
	{unix.RLIMIT_FSIZE, "RLIMIT_FSIZE"}, {unix.RLIMIT_LOCKS, "RLIMIT_LOCKS"}, {unix.RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"},
	{unix.RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE"}, {unix.RLIMIT_NICE, "RLIMIT_NICE"}, {unix.RLIMIT_NOFILE, "RLIMIT_NOFILE"},
	{unix.RLIMIT_NPROC, "RLIMIT_NPROC"}, {unix.RLIMIT_RSS, "RLIMIT_RSS"}, {unix.RLIMIT_RTPRIO, "RLIMIT_RTPRIO"},
	{unix.RLIMIT_RTTIME, "RLIMIT_RTTIME"}, {unix.RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING"}, {unix.RLIMIT_STACK, "RLIMIT_STACK"},
}
