package client

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// manager is the part of a service manager that a keeper sees: it makes the
// socket, starts the keeper, and stores descriptors for the next one.
type manager struct {
	t        *testing.T
	dir      string
	listener *os.File
	notify   int
	wg       sync.WaitGroup
	keeper   *exec.Cmd

	mu     sync.Mutex
	names  []string   // guarded by mu
	stored []*os.File // guarded by mu
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, dir: t.TempDir()}
	if err := os.Chmod(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}

	m.listener = m.listen()
	var err error
	if m.notify, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(m.notify, &unix.SockaddrUnix{Name: filepath.Join(m.dir, "notify")}); err != nil {
		t.Fatal(err)
	}

	m.wg.Go(m.receive)
	t.Cleanup(m.close)
	return m
}

// listen makes the socket, as at every start of its unit.
func (m *manager) listen() *os.File {
	m.t.Helper()
	dir, err := openState(m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	defer dir.Close()
	f, err := listen(dir, m.dir, unitSocketName)
	if err != nil {
		m.t.Fatal(err)
	}
	return f
}

// receive serves notifications until close.
func (m *manager) receive() {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*253))
	for {
		n, oobn, _, _, err := unix.Recvmsg(m.notify, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || string(buf[:n]) == "end" {
			return
		}

		said := map[string]string{}
		for line := range strings.Lines(string(buf[:n])) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			said[name] = value
		}

		m.mu.Lock()
		switch {
		case said["FDSTORE"] == "1" && said["FDPOLL"] == "0":
			files := rights(m.t, oob[:oobn])
			// The order in which they come back must not matter.
			rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
			for _, f := range files {
				m.checkLocked(said["FDNAME"], f)
				m.names = append([]string{said["FDNAME"]}, m.names...)
				m.stored = append([]*os.File{f}, m.stored...)
			}
		case said["FDSTOREREMOVE"] == "1":
			m.removeLocked(said["FDNAME"])
		default:
			m.t.Errorf("the manager got %q", buf[:n])
		}
		m.mu.Unlock()
	}
}

// checkLocked expects what systemd accepts: a name without colons, and no
// descriptor that it has already, whose duplicate it would drop.
func (m *manager) checkLocked(name string, f *os.File) {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
		m.t.Errorf("systemd refuses the name %q", name)
	}
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	for i, other := range m.stored {
		order, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, f.Fd(), other.Fd(), 0)
		if errno == 0 && order == 0 {
			m.t.Errorf("%s is stored as %s, too", name, m.names[i])
		}
	}
}

func rights(t *testing.T, oob []byte) (files []*os.File) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		t.Errorf("nothing to store: %v", err)
		return nil
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Error(err)
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "stored"))
	}
	return files
}

func (m *manager) removeLocked(name string) {
	for i := len(m.names) - 1; i >= 0; i-- {
		if m.names[i] == name {
			m.stored[i].Close()
			m.names = append(m.names[:i:i], m.names[i+1:]...)
			m.stored = append(m.stored[:i:i], m.stored[i+1:]...)
		}
	}
}

func (m *manager) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.names...)
}

// start starts a keeper with all that is stored.
func (m *manager) start() {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}

	log, err := os.OpenFile(filepath.Join(m.dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()

	m.mu.Lock()
	defer m.mu.Unlock()
	m.keeper = exec.Command("/bin/bash", "-c", `LISTEN_PID=$$ exec -a "$0" "$@"`, binaryName, self, m.dir)
	m.keeper.Env = []string{
		"NOTIFY_SOCKET=" + filepath.Join(m.dir, "notify"),
		fmt.Sprintf("LISTEN_FDS=%d", 1+len(m.stored)),
		"LISTEN_FDNAMES=" + strings.Join(append([]string{"crisp-keeper.socket"}, m.names...), ":"),
	}

	m.keeper.ExtraFiles = append([]*os.File{m.listener}, m.stored...)
	m.keeper.Stderr = log
	if err := m.keeper.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// kill kills the keeper.
func (m *manager) kill() {
	m.t.Helper()
	if err := m.keeper.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	_ = m.keeper.Wait() // killed
}

func (m *manager) close() {
	if err := unix.Sendto(m.notify, []byte("end"), 0, &unix.SockaddrUnix{Name: filepath.Join(m.dir, "notify")}); err != nil {
		m.t.Error(err)
	}
	m.wg.Wait()
	unix.Close(m.notify)
	m.listener.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.stored {
		f.Close()
	}
}

// TestStoreOutlivesBoth kills the keeper while only the service manager holds
// its descriptors, too.
func TestStoreOutlivesBoth(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	becomeSubreaper(t)
	m := newManager(t)
	m.start()

	c := connectTest(t, m.dir)

	stop := filepath.Join(t.TempDir(), "stop")
	counting := newShell(t, "web", "i=0; while [ ! -e "+stop+" ]; do i=$((i+1)); echo $i || exit 99; done; echo end >&2; exit 7")
	keptR, keptW := pipe(t)
	defer closeFiles(keptR, keptW)

	otherR, otherW := pipe(t)
	defer closeFiles(otherR, otherW)
	counting.req.Keep = []Named{{"stdin", keptW}, {"other", otherW}}
	st := counting.start(t, c)
	p := newProgram("make sandbox pod")
	p.Clone.Flags = unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	p.gate()

	held, err := c.Start(testContext(t), Request{ID: "pod", Kind: Sandbox, Plan: &p.Plan, Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
	if err := c.CloseKept(testContext(t), "web", "other"); err != nil {
		t.Fatal(err)
	}

	newShell(t, "ended", "exit 3").start(t, c)
	awaitExit(t, c, "ended")
	eventually(t, "output", func() bool { return len(counting.read(t)) > 10000 })
	first := counting.log
	for round := range 3 {
		if round == 1 { // a reopened log comes back, too
			rename(t, counting.log, counting.log+".1")
			out, err := os.OpenFile(first, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				t.Fatal(err)
			}

			if err := c.ReopenLog(testContext(t), "web", out); err != nil {
				t.Fatal(err)
			}
			out.Close()
			eventually(t, "output", func() bool { return len(counting.read(t)) > 10000 })
		}
		if round == 2 { // an upgrade leaves the store as it is
			if replaced, err := Upgrade(testContext(t), m.dir, otherPrograms(t)[0]); err != nil || !replaced {
				t.Fatalf("replaced %v, error %v", replaced, err)
			}
		}

		m.kill()
		<-c.Done()
		c.Close()
		m.start()
		c = connectTest(t, m.dir)
		before := len(counting.read(t))
		eventually(t, "log continues", func() bool { return len(counting.read(t)) > before })
	}

	defer func() { c.Close() }()

	list := map[string]Entry{}
	for _, e := range listAll(t, c) {
		list[e.ID] = e
	}

	web := list["web"]
	if web.Pid != st.Pid || web.PidFD == nil || web.Kept["stdin"] == nil || web.Kept["other"] != nil || !web.StartedAt.Equal(st.StartedAt) {
		t.Errorf("the container came back as %+v", web)
	}

	checkNamespaces(t, list["pod"].Namespaces, "uts", "ipc")
	if len(list) != 2 {
		t.Errorf("%d entries came back", len(list))
	}

	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(st.Pid, &status, 0, nil); err != nil || status.ExitStatus() != 7 {
		t.Fatalf("status %v, error %v", status, err)
	}

	wantExit7(t, awaitExit(t, c, "web"))
	old, err := os.ReadFile(counting.log + ".1")
	if err != nil {
		t.Fatal(err)
	}

	checkCounted(t, append(old, counting.read(t)...))
	forget(t, c, "web", "pod", "ended")
	eventually(t, "nothing is stored", func() bool { return len(m.list()) == 0 })
	c.Close()

	if err := m.keeper.Wait(); err != nil { // it exits when it holds nothing
		t.Error(err)
	}
	if log, err := os.ReadFile(filepath.Join(m.dir, logName)); err != nil || len(log) > 0 {
		t.Errorf("keeper log: %s, %v", log, err)
	}
}

// TestKeeperWithoutItsSocket starts a keeper with what is stored alone, as
// systemd does if the socket's unit is stopped.
func TestKeeperWithoutItsSocket(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	m := newManager(t)
	r, w := pipe(t)
	defer closeFiles(r, w)

	socket := m.listener
	m.listener = r
	m.start()
	m.listener = socket

	if err := m.keeper.Wait(); err == nil {
		t.Error("it exits with 0")
	}
	if log, err := os.ReadFile(filepath.Join(m.dir, logName)); err != nil || !strings.Contains(string(log), "descriptor 3 is not a listening socket") {
		t.Errorf("keeper log: %s, %v", log, err)
	}
}

// TestSocketComesBack stops the socket's unit, so that the daemon starts a
// keeper itself, and starts it again while that has a container.
func TestSocketComesBack(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	m := newManager(t)
	m.listener.Close()

	c := connectTest(t, m.dir)
	st := newShell(t, "web", "exec sleep 60").start(t, c)
	m.listener = m.listen()

	again := connectTest(t, m.dir)
	if list := listAll(t, again); len(list) != 1 || list[0].ID != "web" {
		t.Errorf("the next daemon's keeper holds %v", list)
	}
	again.Close()
	m.start()

	if err := m.keeper.Wait(); err == nil {
		t.Error("the service manager's keeper starts next to it, and exits with 0")
	}
	log, err := os.ReadFile(filepath.Join(m.dir, logName))
	if err != nil || !strings.Contains(string(log), "a keeper started by the daemon is running") {
		t.Errorf("keeper log: %s, %v", log, err)
	}

	end(t, c, "web", st)
	forget(t, c, "web")
	c.Close()
	eventually(t, "the daemon's keeper ends", func() bool {
		_, err := os.Stat(filepath.Join(m.dir, ownSocketName))
		return os.IsNotExist(err)
	})

	m.start()
	c = connectTest(t, m.dir)
	if c.keeper != nil {
		t.Error("the daemon starts another keeper next to the service manager's")
	}
	c.Close()

	if err := m.keeper.Wait(); err != nil {
		t.Error(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
