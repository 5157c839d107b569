package keeper

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"crisp/runtime/pause"
	"crisp/runtime/sealed"
	"crisp/runtime/spawn"
)

const (
	programName = "crisp-keeper"
	// listenFD is the listening socket, inherited from the daemon or systemd.
	listenFD = 3
	maxProcs = 2
)

// Main is the keeper's program; args are the arguments after the program's
// name: the state directory. The listening socket is descriptor 3, from a
// daemon or from systemd. It returns the exit code.
func Main(args []string) int {
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "crisp-keeper: %v\n", err)
		return 1
	}
	return 0
}

// errUsage is returned when the keeper is started by hand.
var errUsage = errors.New("want one argument: the absolute path of the state directory; this program is started by the daemon or systemd (see crisp(8))")

func run(args []string) error {
	left, done, err := inherit()
	if done || err != nil {
		return err
	}

	if len(args) != 1 {
		return errUsage
	}
	if !filepath.IsAbs(args[0]) {
		return fmt.Errorf("%q is not an absolute path: %w", args[0], errUsage)
	}

	for fd := range listenFD {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("descriptor %d is closed", fd)
		}
	}

	activated := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid())
	if activated {
		if served(args[0]) {
			return errors.New("a keeper started by the daemon is running: this one would take its containers' output away")
		}

		// Without its socket unit the first descriptor comes from the store.
		if on, err := unix.GetsockoptInt(listenFD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			return fmt.Errorf("descriptor %d is not a listening socket: start the socket unit", listenFD)
		}
		if err := becomeSealed(args[0]); err != nil {
			return err
		}
	}

	runtime.GOMAXPROCS(maxProcs)
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryBase)
	opt, err := setUpProcess()
	if err != nil {
		return err
	}

	if !activated {
		setLimits()
	}
	exits := filepath.Join(args[0], exitsDir)
	if err := os.MkdirAll(exits, 0o700); err != nil {
		return fmt.Errorf("make directory of exit records: %w", err)
	}

	if err := removeUnfinished(exits); err != nil {
		return err
	}
	k := newKeeper(args[0], opt)
	k.activated = activated
	if k.exits, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("make a descriptor to wait for children: %w", err)
	}

	if address := os.Getenv("NOTIFY_SOCKET"); activated && address != "" {
		k.store = &store{address: address}
	}
	if left == nil && k.store != nil {
		k.regain()
	}
	if left != nil {
		k.opt.OOMScoreAdj = left.oomScoreAdj // the own score is lowered already
		if err := k.restore(left); err != nil {
			return err
		}
	}

	return k.serve(listenFD)
}

// served reports whether a keeper started by a daemon is listening.
func served(stateDir string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(stateDir, socketName)}) == nil
}

// removeUnfinished removes exit records whose keeper was killed while it wrote them.
func removeUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list exit records: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove an unfinished exit record: %w", err)
			}
		}
	}
	return nil
}

// becomeSealed re-executes this program from a sealed copy of itself, as a
// daemon would have started it, unless it already runs from one. Process ID,
// environment and descriptors stay, so the service manager sees no difference.
func becomeSealed(stateDir string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open own program: %w", err)
	}
	defer self.Close()

	if sealed.Is(self) {
		return nil
	}
	image, err := sealed.Program(programName, self.Name())
	if err != nil {
		return fmt.Errorf("seal own program: %w", err)
	}
	defer image.Close()

	return fmt.Errorf("execute the sealed program: %w",
		unix.Exec(fmt.Sprintf("/proc/self/fd/%d", image.Fd()), []string{programName, stateDir}, os.Environ()))
}

// setUpProcess gives this process the attributes of a keeper, and returns those
// that its children have to undo.
func setUpProcess() (spawn.Options, error) {
	var opt spawn.Options
	// No process of a container may ptrace or read this one, nor its children,
	// which inherit the flag.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return opt, fmt.Errorf("become undumpable: %w", err)
	}

	text, err := spawn.FindText()
	if err != nil {
		return opt, err
	}

	opt.Text = text
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return opt, fmt.Errorf("become subreaper: %w", err)
	}

	// It runs from a memfd: the kernel named it after the descriptor's number.
	if err := os.WriteFile("/proc/self/comm", []byte(programName), 0); err != nil {
		return opt, fmt.Errorf("set name of process: %w", err)
	}

	// A session's end or a daemon's service manager must not end containers.
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	unix.CloseOnExec(listenFD)
	limit, err := inheritedNoFile()
	if err != nil {
		return opt, err
	}

	opt.NoFile = limit
	if opt.Cloner, err = spawn.NewCloner(); err != nil {
		return opt, err
	}
	spawn.RaiseFiles()
	resetInherited()
	opt.OOMScoreAdj = lowerOOMScore()
	return opt, nil
}

// resetInherited undoes what this process inherited and its children would
// inherit from it. Errors are ignored.
func resetInherited() {
	const coreFilter = "0x33" // the kernel's default
	unix.Umask(0o022)
	_ = os.WriteFile("/proc/self/coredump_filter", []byte(coreFilter), 0)
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0)
}

// setLimits sets the default limits of containers, as the keeper's unit does:
// those of the shell that started the daemon must not apply to them.
// RLIMIT_NOFILE is set for each process.
func setLimits() {
	const unlimited, stack, locked, queues = math.MaxUint64, 8 << 20, 8 << 20, 819200
	for resource, limit := range map[int]unix.Rlimit{
		unix.RLIMIT_CPU: {Cur: unlimited, Max: unlimited}, unix.RLIMIT_FSIZE: {Cur: unlimited, Max: unlimited},
		unix.RLIMIT_DATA: {Cur: unlimited, Max: unlimited}, unix.RLIMIT_STACK: {Cur: stack, Max: unlimited},
		unix.RLIMIT_CORE: {Cur: unlimited, Max: unlimited}, unix.RLIMIT_RSS: {Cur: unlimited, Max: unlimited},
		unix.RLIMIT_NPROC: {Cur: unlimited, Max: unlimited}, unix.RLIMIT_MEMLOCK: {Cur: locked, Max: locked},
		unix.RLIMIT_AS: {Cur: unlimited, Max: unlimited}, unix.RLIMIT_LOCKS: {Cur: unlimited, Max: unlimited},
		unix.RLIMIT_MSGQUEUE: {Cur: queues, Max: queues}, unix.RLIMIT_NICE: {}, unix.RLIMIT_RTPRIO: {},
		unix.RLIMIT_RTTIME: {Cur: unlimited, Max: unlimited},
	} {
		_ = unix.Prlimit(0, resource, &limit, nil) // may lack the privilege to raise them
	}
}

// inheritedNoFile returns the limit on open files with which this process was
// started. Go raises it before main without exposing the old value, and
// restores it in programs that it starts.
func inheritedNoFile() (*unix.Rlimit, error) {
	runtime.LockOSThread() // Pdeathsig kills the probe when this thread exits
	defer runtime.UnlockOSThread()
	p, err := startProbe()
	if err != nil {
		return nil, fmt.Errorf("run limit probe: %w", err)
	}

	var limit unix.Rlimit
	err = unix.Prlimit(p.Pid, unix.RLIMIT_NOFILE, nil, &limit)
	if kerr := p.Kill(); kerr != nil {
		return nil, fmt.Errorf("end limit probe: %w", kerr)
	}

	if _, werr := p.Wait(); werr != nil {
		return nil, fmt.Errorf("end limit probe: %w", werr)
	}
	if err != nil {
		return nil, fmt.Errorf("read limit of open files: %w", err)
	}
	return &limit, nil
}

// startProbe starts a program that does nothing. It dies with this process,
// which can be killed at any time.
func startProbe() (*os.Process, error) {
	image, err := pause.Open()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), image.Fd())
	return os.StartProcess(path, []string{"pause"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}})
}

// lowerOOMScore protects the keeper from the OOM killer. It returns the
// previous score, for the children, or "" if nothing changed.
func lowerOOMScore() string {
	const path, spared = "/proc/self/oom_score_adj", "-999"
	before, err := os.ReadFile(path)
	if err != nil {
		return ""
	}

	// Without CAP_SYS_RESOURCE this fails, and the keeper keeps its score.
	if err := os.WriteFile(path, []byte(spared), 0); err != nil {
		return ""
	}

	score := strings.TrimSpace(string(before))
	if strings.HasPrefix(score, "-") {
		return "0" // the protection of this process is not for containers
	}
	return score
}

// notifySignals subscribes to SIGCHLD and SIGTERM.
func notifySignals() (child, term chan os.Signal) {
	child, term = make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	signal.Notify(term, syscall.SIGTERM)
	return child, term
}
