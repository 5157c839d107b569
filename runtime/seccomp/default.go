package seccomp

import (
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// RuntimeDefault is the profile for RuntimeDefault containers, given their
// bounding set of capabilities. It allows what the default profiles of
// containerd and Docker allow.
//
// It is an allow list. It omits calls that change the machine, or that have a
// bad security record and few users: kernel modules, clocks, keyrings,
// io_uring, userfaultfd, new namespaces, mounts. A capability adds the calls
// that need it.
func RuntimeDefault(caps []string) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: defaultArches(),
		Syscalls:      []specs.LinuxSyscall{{Names: strings.Fields(always), Action: specs.ActAllow}},
	}

	for _, g := range withCapability {
		if slices.Contains(caps, g.capability) {
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: strings.Fields(g.calls), Action: specs.ActAllow})
		}
	}

	if !slices.Contains(caps, "CAP_SYS_ADMIN") {
		p.Syscalls = append(p.Syscalls, withoutNamespaces()...)
	}
	for _, persona := range personalities {
		p.Syscalls = append(p.Syscalls, allowIf("personality", specs.OpEqualTo, persona, 0))
	}

	p.Syscalls = append(p.Syscalls, sockets()...)
	return p
}

func defaultArches() []specs.Arch {
	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		return nil
	}
	var arches []specs.Arch
	for _, a := range abis {
		arches = append(arches, a.arch)
	}
	return arches
}

func allowIf(name string, op specs.LinuxSeccompOperator, value, valueTwo uint64) specs.LinuxSyscall {
	return specs.LinuxSyscall{
		Names:  []string{name},
		Action: specs.ActAllow,
		Args:   []specs.LinuxSeccompArg{{Index: 0, Value: value, ValueTwo: valueTwo, Op: op}},
	}
}

// withoutNamespaces allows new processes, but no new namespaces. The flags of
// clone3 are in memory, which a filter cannot read: it returns ENOSYS, and C
// libraries fall back to clone.
func withoutNamespaces() []specs.LinuxSyscall {
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	noSys := uint(unix.ENOSYS)
	return []specs.LinuxSyscall{
		allowIf("clone", specs.OpMaskedEqual, namespaces, 0),
		{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &noSys},
	}
}

// personalities are PER_LINUX, PER_LINUX32, each also with UNAME26, and the
// query.
var personalities = [...]uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff}

// sockets allows all address families but AF_ALG, which exposes the kernel's
// cryptography, and AF_VSOCK, which ignores network namespaces. The kernel uses
// only the low half of the argument while a filter compares all of it, so no
// rule may allow "greater than".
func sockets() []specs.LinuxSyscall {
	out := []specs.LinuxSyscall{allowIf("socket", specs.OpLessThan, unix.AF_ALG, 0)}
	for family := uint64(unix.AF_ALG + 1); family < unix.AF_MAX; family++ {
		if family != unix.AF_VSOCK {
			out = append(out, allowIf("socket", specs.OpEqualTo, family, 0))
		}
	}
	return out
}

// always are the calls that every container may make. Names that an ABI lacks
// are ignored there.
const always = `
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3
faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat
fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64
fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 link linkat
_llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat
openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs
statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range
arm_fadvise64_64 syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat
utimensat_time64 utimes vmsplice write writev listmount statmount

fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat
llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat

epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64
select signalfd signalfd4
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit

accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair

brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
pkey_mprotect remap_file_pages

execve execveat exit exit_group fork vfork wait4 waitid waitpid
getpgid getpgrp getpid getppid getpriority getrusage getsid gettid setpgid setpriority setsid
pidfd_open pidfd_send_signal process_mrelease process_vm_readv process_vm_writev ptrace
getrlimit prlimit64 setrlimit ugetrlimit ioprio_get ioprio_set prctl seccomp
landlock_add_rule landlock_create_ruleset landlock_restrict_self uretprobe
arch_prctl get_thread_area modify_ldt set_thread_area set_tid_address set_tls breakpoint cacheflush

capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
getresgid getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32
setresuid setresuid32 setreuid setreuid32 setuid setuid32

getcpu rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list set_robust_list

kill pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask
sigreturn tgkill tkill

adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times

ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
semtimedop_time64 shmat shmctl shmdt shmget

getrandom sysinfo uname
`

// withCapability are the calls that a capability adds.
var withCapability = [...]struct{ capability, calls string }{
	{"CAP_SYS_ADMIN", `
		bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
		lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount
		open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog
		umount umount2 unshare`},
	{"CAP_BPF", "bpf"},
	{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
	{"CAP_PERFMON", "perf_event_open"},
	{"CAP_SYSLOG", "syslog"},
	{"CAP_SYS_BOOT", "reboot"},
	{"CAP_SYS_CHROOT", "chroot"},
	{"CAP_SYS_MODULE", "delete_module finit_module init_module"},
	{"CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
	{"CAP_SYS_PACCT", "acct"},
	{"CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"},
	{"CAP_SYS_RAWIO", "ioperm iopl"},
	{"CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"},
	{"CAP_SYS_TTY_CONFIG", "vhangup"},
}
