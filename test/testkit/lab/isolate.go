package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolatedEnv marks the copy of the program that runs in the namespaces: its
// value is that copy's process ID, so that its children are not mistaken for
// it.
const isolatedEnv = "CRISP_LAB_PID"

// Isolated reports whether this process has network, mount, IPC and UTS
// namespaces of its own, made by [Isolate].
func Isolated() bool { return os.Getenv(isolatedEnv) == fmt.Sprint(os.Getpid()) }

// Isolate runs main in network, mount, IPC and UTS namespaces of its own, by
// starting this program again, and returns main's result. Bridges, packet
// filter rules, host ports, System V memory and leaked mounts stay in there and
// vanish with it. Without root it just runs main.
func Isolate(main func() int) int {
	if os.Geteuid() != 0 {
		return main()
	}
	switch os.Getenv(isolatedEnv) {
	case "":
	case "new":
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "set up namespaces:", err)
			return 1
		}
		return main()
	default: // started by an isolated copy, and in its namespaces
		return main()
	}

	status, err := rerun()
	if err != nil {
		fmt.Fprintln(os.Stderr, "enter new namespaces:", err)
	}
	return status
}

// rerun starts this program in new namespaces and waits for it.
func rerun() (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolatedEnv+"=new")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}

	// The copy is in the same process group, so that signals from a terminal
	// reach it too; one sent to this process alone is forwarded.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)

	if err := cmd.Start(); err != nil {
		return 1, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()

	for {
		select {
		case s := <-signals:
			if s != syscall.SIGINT {
				_ = cmd.Process.Signal(s) // it may have exited meanwhile
			}
		case err := <-done:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return max(exit.ExitCode(), 1), nil
			}
			return cmd.ProcessState.ExitCode(), err
		}
	}
}

// furnish sets up the new namespaces. Mounts get their own peer groups, shared
// as on a node but not with the machine.
func furnish() error {
	if err := takeRoot(); err != nil {
		return fmt.Errorf("leave the chroot: %w", err)
	}
	if err := os.Setenv(isolatedEnv, fmt.Sprint(os.Getpid())); err != nil {
		return err
	}

	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("set mount propagation: %w", err)
		}
	}

	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}

	return nil
}
