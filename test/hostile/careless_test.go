package hostile

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/pods"
)

// TestCarelessIsFound verifies that residents detect leaks: a process that
// joins their PID namespace as no runtime should, with the node's root, an open
// directory of the node, and another pod's secret, is detected by each of
// these.
func TestCarelessIsFound(t *testing.T) {
	n := newNode(t)
	p := pods.Run(t, n.Lab, "careless")
	r := p.Start(t, "resident", attacker, n.of(kind{pid: "container", network: "pod", capability: "SYS_PTRACE"}), pods.Command("/resident", "watch"))
	r.Await(t, "LOOKED")

	if findings := found(r.Logged(t), "FOUND"); len(findings) > 0 {
		t.Errorf("before, it found %q", findings)
	}

	directory, err := os.Open(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()

	cmd := exec.Command("nsenter", "-t", strconv.Itoa(r.PID(t)), "-p", "sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "SECRET="+n.secret)
	cmd.ExtraFiles = []*os.File{directory}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, child := range inventory.Descendants(cmd.Process.Pid) {
			_ = unix.Kill(child.PID, unix.SIGKILL) // it may have exited
		}
		// It must reap its child, or the container's namespace would never be
		// destroyed.
		_ = cmd.Wait()
	}()

	for _, want := range []string{
		"FOUND node by root", "FOUND node by cwd", "FOUND node by descriptor", "FOUND root another",
		"FOUND secret environ", "FOUND secret memory", "FOUND capabilities CapEff", "FOUND no filter",
	} {
		r.Await(t, want)
	}
}

// TestNoAbstractSockets requires that the daemon and its keeper listen on no
// abstract socket in the node's network (CVE-2020-15257). It also verifies that
// an existing one is found.
func TestNoAbstractSockets(t *testing.T) {
	n := newNode(t)
	p := pods.Run(t, n.Lab, "network", pods.HostNetwork)
	r := p.Start(t, "resident", attacker, n.armed(), capable("ALL"), pods.Command("/resident", "watch"))
	r.Await(t, "LOOKED")

	for _, finding := range found(r.Logged(t), "FOUND") {
		if strings.HasPrefix(finding, "socket") {
			t.Errorf("it reaches a %s", finding)
		}
	}

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@hostile-careless"}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	r.Await(t, "FOUND socket @hostile-careless")
}
