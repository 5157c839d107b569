package client

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/spool"
	"crisp/test/testkit"
)

// lastName is the program that stands for a keeper of the last release: it
// speaks version 3 of the protocol and leaves version 1 of the state.
const lastName = "last-keeper"

// TestLastKeeperIsTakenOver has a daemon find a keeper of the last release, with
// a container that runs.
func TestLastKeeperIsTakenOver(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	state := stateDir(t)
	dir, err := openState(state)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()

	listener, err := listen(dir, state, ownSocketName)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	last := &exec.Cmd{Path: self, Args: []string{lastName, state}, ExtraFiles: []*os.File{listener}, Stderr: os.Stderr}
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	listener.Close()

	c := connectTest(t, state)
	list := listAll(t, c)
	if len(list) != 1 {
		t.Fatalf("listed %+v", list)
	}
	web := list[0]
	if web.ID != "web" || web.Kind != Container || web.Dropped < 7 || web.StartedAt.UnixNano() != 1700000000000000002 || web.PidFD == nil {
		t.Errorf("listed %+v", web)
	}
	if web.Kept["stdin"] == nil || web.Kept["other"] == nil || web.Log == nil || web.Log.Stdout == nil || web.Log.Stderr == nil {
		t.Errorf("it holds %v and %+v", web.Kept, web.Log)
	}

	log := func() []byte { return (&shell{log: filepath.Join(state, "log")}).read(t) }
	before := len(log())
	eventually(t, "log continues", func() bool { return len(log()) > before })
	if err := os.WriteFile(filepath.Join(state, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	if x := awaitExit(t, c, "web"); x.Code != 7 || x.Pid != web.Pid {
		t.Errorf("exit %+v", x)
	}
	checkCounted(t, log())
	if !strings.Contains(string(log()), " stderr F end\n") {
		t.Error("the log lacks its end")
	}

	forget(t, c, "web")
	c.Close()
	if err := last.Wait(); err != nil { // it ends when it holds nothing
		t.Error(err)
	}
}

// lastKeeper serves until it is replaced. It returns why that failed.
func lastKeeper(state string) error {
	pid, err := lastEntry(state)
	if err != nil {
		return fmt.Errorf("hold a container: %w", err)
	}

	// A daemon of another version is refused.
	conn, request, fds, err := lastRequest()
	if err != nil || !bytes.HasPrefix(request, []byte("\x01\x00\x00\x00\x00")) || len(fds) > 0 {
		return fmt.Errorf("want a handshake, have %q with files %v, %w", request, fds, err)
	}
	refusal := "\x0b\x00\x00\x00\x00\x01:protocol version not supported: daemon has 4, keeper has 3\x00"
	if err := unix.Sendmsg(conn, []byte(refusal), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("refuse: %w", err)
	}
	unix.Close(conn)

	if _, request, fds, err = lastRequest(); err != nil || string(request) != "\x11\x00\x00\x00\x00" || len(fds) != 1 {
		return fmt.Errorf("want a program, have %q with files %v, %w", request, fds, err)
	}
	return lastExec(state, fds[0], pid)
}

// lastRequest receives the first packet of the next connection.
func lastRequest() (conn int, request []byte, fds []int, err error) {
	const listenFD = 3
	if conn, _, err = unix.Accept4(listenFD, unix.SOCK_CLOEXEC); err != nil {
		return -1, nil, nil, fmt.Errorf("accept: %w", err)
	}
	request, oob := make([]byte, 1024), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(conn, request, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || oobn == 0 {
		return conn, request[:n], nil, err
	}

	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return conn, request[:n], nil, err
	}
	fds, err = unix.ParseUnixRights(&messages[0])
	return conn, request[:n], fds, err
}

// lastEntry starts a process and puts its descriptors where the captured state has them.
func lastEntry(state string) (pid int, err error) {
	log, err := os.OpenFile(filepath.Join(state, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	null, nerr := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	stdout, stdoutW, perr := os.Pipe()
	stderr, stderrW, qerr := os.Pipe()
	outSpool, serr := spool.Create(16 << 10)
	errSpool, terr := spool.Create(16 << 10)
	if err := errors.Join(err, nerr, perr, qerr, serr, terr); err != nil {
		return 0, err
	}

	pidfd := -1
	script := "i=0; while [ ! -e " + filepath.Join(state, "stop") + " ]; do i=$((i+1)); echo $i; done; echo end >&2; exit 7"
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = stdoutW, stderrW, &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid = cmd.Process.Pid
	if err := cmd.Process.Release(); err != nil {
		return 0, err
	}

	// They are moved out of the way first.
	var held []int
	for _, fd := range []int{pidfd, int(log.Fd()), int(null.Fd()), int(null.Fd()), int(stdout.Fd()), int(outSpool.Fd()),
		int(null.Fd()), int(null.Fd()), int(stderr.Fd()), int(errSpool.Fd())} {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
		if err != nil {
			return 0, err
		}
		held = append(held, fd)
	}
	closeFiles(log, null, stdout, stdoutW, stderr, stderrW, outSpool, errSpool)
	unix.Close(pidfd)

	const first = 14 // the pidfd
	for i, fd := range held {
		if _, err := unix.FcntlInt(uintptr(first+i), unix.F_GETFD, 0); err == nil {
			return 0, fmt.Errorf("descriptor %d is in use", first+i)
		}
		if err := unix.Dup3(fd, first+i, 0); err != nil {
			return 0, err
		}
		unix.Close(fd)
	}
	return pid, nil
}

// lastExec executes the program, with the captured state of one entry and the
// PID of another process.
func lastExec(state string, program, pid int) error {
	captured, err := os.ReadFile(filepath.Join("..", "testdata", "state-1"))
	if err != nil {
		return err
	}
	entry := captured[bytes.Index(captured, []byte("\x03web")):bytes.Index(captured, []byte("\x03tty"))]
	data := append([]byte("\x01\x00\x01"), bytes.Replace(entry, binary.AppendVarint(nil, 102), binary.AppendVarint(nil, int64(pid)), 1)...)

	fd, err := unix.MemfdCreate("state", 0)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, data); err != nil {
		return err
	}

	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program)
	check := exec.Command(path)
	check.Args, check.Env, check.Stderr = []string{binaryName}, []string{"CRISP_KEEPER_CHECK=3"}, os.Stderr
	check.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "state")}
	if err := check.Run(); err != nil {
		return fmt.Errorf("try program: %w", err)
	}
	return unix.Exec(path, []string{binaryName, state}, []string{"GODEBUG=disablethp=1", fmt.Sprintf("CRISP_KEEPER_STATE=%d", fd)})
}
