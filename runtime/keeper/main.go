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
	// listenFD is the listening socket that the starter hands over.
	listenFD = 3
	// The heap of a keeper is small and short-lived, so it is collected often.
	gcPercent   = 40
	memoryLimit = 12 << 20
	maxProcs    = 2
)

// Main is the keeper's program; args are the arguments after the program's
// name: the state directory. The listening socket is descriptor 3, be it from a
// daemon or from systemd. It returns the exit code.
func Main(args []string) int {
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "crisp-keeper: %v\n", err)
		return 1
	}
	return 0
}

// errUsage says that nobody starts a keeper by hand.
var errUsage = errors.New("want one argument: the state directory, an absolute path; the daemon, or systemd, starts this program (see crisp(8))")

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
			return errors.New("a keeper that the daemon started is at work: this one would take its containers' output away")
		}

		// Without its socket unit the first descriptor is one that was stored.
		if on, err := unix.GetsockoptInt(listenFD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			return fmt.Errorf("descriptor %d is no socket to listen on: start the socket's unit", listenFD)
		}
		if err := becomeSealed(args[0]); err != nil {
			return err
		}
	}

	runtime.GOMAXPROCS(maxProcs)
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	opt, err := settle()
	if err != nil {
		return err
	}

	if !activated {
		ownLimits()
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

	if address := os.Getenv("NOTIFY_SOCKET"); activated && address != "" {
		k.store = &store{address: address}
	}
	if left == nil && k.store != nil {
		k.regain()
	}
	if left != nil {
		k.opt.OOMScoreAdj = left.oomScoreAdj // the score was lowered before
		if err := k.restore(left); err != nil {
			return err
		}
	}

	return k.serve(listenFD)
}

// served reports whether a keeper that a daemon started listens.
func served(stateDir string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(stateDir, socketName)}) == nil
}

// removeUnfinished removes the exit records that a keeper was killed over.
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

// becomeSealed executes this program anew from a sealed copy of itself, as a
// daemon would have started it, unless it is one. Process ID, environment and
// descriptors stay, so that the service manager sees no difference.
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

// settle makes this process what a keeper must be, and returns what its
// children have to undo.
func settle() (spawn.Options, error) {
	var opt spawn.Options
	// No process of a container may look into this one, nor into its children,
	// which are born with the same.
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

	// It runs from a descriptor, and would be named after its number.
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
	spawn.RaiseFiles()
	ordinary()
	opt.OOMScoreAdj = lowerOOMScore()
	return opt, nil
}

// ordinary undoes what whoever started this process has set up for itself and
// what children would inherit with the memory. Errors leave that as it is.
func ordinary() {
	const coreFilter = "0x33" // what the kernel begins with
	unix.Umask(0o022)
	_ = os.WriteFile("/proc/self/coredump_filter", []byte(coreFilter), 0)
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0)
}

// ownLimits sets the limits that containers have unless they ask for others, as
// the keeper's unit does: a shell's are none of theirs. That on open files is
// set for each process.
func ownLimits() {
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
		_ = unix.Prlimit(0, resource, &limit, nil) // it may not raise them
	}
}

// inheritedNoFile returns the limit on open files with which this process was
// started. Go raises it before main and forgets the old value, but gives it
// to programs that it starts.
func inheritedNoFile() (*unix.Rlimit, error) {
	runtime.LockOSThread() // whose end would be that of the probe
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

// startProbe starts a program that does nothing. It ends with this process,
// too, which can be killed at any time.
func startProbe() (*os.Process, error) {
	image, err := pause.Open()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), image.Fd())
	return os.StartProcess(path, []string{"pause"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}})
}

// lowerOOMScore makes the kernel spare the keeper when memory runs out. It
// returns the score before, for the children, or "" if nothing changed.
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
		return "0" // what spared this process spares no container
	}
	return score
}

// notifySignals subscribes to the ends of children and to requests to end.
func notifySignals() (child, term chan os.Signal) {
	child, term = make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	signal.Notify(term, syscall.SIGTERM)
	return child, term
}
