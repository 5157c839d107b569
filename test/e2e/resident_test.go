package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// residentArg makes the program of these tests the resident of a container.
const residentArg = "hostile-resident"

// resident looks at every process that it can see, for as long as it lives, and
// prints what it finds that is not the container's own. Processes are looked at
// again and again: what they have changes on their way to their program.
type resident struct {
	root  unix.Stat_t
	own   map[string]string // the fields of its own status
	canon []byte            // what another pod has in its environment
	found map[string]bool
	seen  int // processes on their way that were caught before their execve
}

// live is the resident's life.
func live() {
	r := &resident{found: map[string]bool{}, own: fields(os.Getpid())}
	// It must not find its own argument.
	for _, b := range []byte(os.Getenv("CANARY_XOR")) {
		r.canon = append(r.canon, b^1)
	}
	if err := unix.Stat("/", &r.root); err != nil {
		fmt.Println("FOUND no root:", err)
	}
	r.surroundings()
	fmt.Println("READY")
	for last := time.Now(); ; {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			fmt.Println("FOUND no /proc:", err)
			return
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
				r.look(pid)
			}
		}
		if time.Since(last) > 100*time.Millisecond {
			fmt.Println("SEEN", r.seen)
			last = time.Now()
		}
	}
}

func (r *resident) report(kind string, detail ...any) {
	line := "FOUND " + kind + " " + fmt.Sprint(detail...)
	if !r.found[line] {
		r.found[line] = true
		fmt.Println(line)
	}
}

// surroundings looks once at what does not change.
func (r *resident) surroundings() {
	sockets, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(sockets)) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.Contains(f[7], "crisp") {
			continue
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			continue
		}
		name := strings.Replace(f[7], "@", "\x00", 1)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err == nil || strings.HasPrefix(f[7], "@") {
			r.report("socket", f[7], err)
		}
		unix.Close(fd)
	}
	agents, _ := filepath.Glob("/sys/fs/cgroup/*/release_agent")
	for _, agent := range agents {
		r.report("release_agent", agent)
	}
	if keys, err := os.ReadFile("/proc/keys"); err == nil && bytes.Contains(keys, []byte("crisp-keeper")) {
		r.report("keyring", string(keys))
	}
}

// look looks at one process.
func (r *resident) look(pid int) {
	dir := fmt.Sprintf("/proc/%d", pid)
	exe, _ := os.Readlink(dir + "/exe")
	before := strings.Contains(exe, "crisp-keeper") || strings.Contains(exe, "memfd:crisp")
	if before {
		r.seen++
	}

	for _, link := range []string{"root", "cwd"} {
		var st unix.Stat_t
		if unix.Stat(dir+"/"+link, &st) != nil || st.Dev == r.root.Dev && st.Ino == r.root.Ino {
			continue
		}
		// The first process of a pod has an empty root, of which nothing can be made.
		list, err := os.ReadDir(dir + "/" + link)
		if made := os.Mkdir(dir+"/"+link+"/x", 0o755); len(list) > 0 || made == nil || link == "cwd" && before {
			r.report(link, exe, " ", list, " ", err)
		}
	}
	if env, _ := os.ReadFile(dir + "/environ"); bytes.Contains(env, r.canon) {
		r.report("environ", exe)
	}
	if status := fields(pid); status["CapPrm"] != "" && caps(status["CapPrm"])&^caps(r.own["CapBnd"]) != 0 {
		r.report("capabilities", exe, " ", status["CapPrm"])
	}
	if before {
		r.descriptors(dir)
		r.memory(dir)
	}
	r.seize(pid)
}

// descriptors looks at what is open in a process on its way.
func (r *resident) descriptors(dir string) {
	list, _ := os.ReadDir(dir + "/fd")
	for _, fd := range list {
		n, _ := strconv.Atoi(fd.Name())
		link, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err == nil && n > 2 && !strings.HasPrefix(link, "socket:") {
			r.report("descriptor", link)
		}
		if f, err := os.Open(dir + "/fd/" + fd.Name() + "/../../../../etc/hostname"); err == nil {
			r.report("path through descriptor", link)
			f.Close()
		}
	}
}

// memory looks for what another pod has in the memory of a process on its way.
func (r *resident) memory(dir string) {
	maps, _ := os.ReadFile(dir + "/maps")
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if n, _ := fmt.Sscanf(line, "%x-%x rw", &from, &to); n < 2 {
			continue
		}
		for at := from; at < to; at += int64(len(buf)) {
			n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if bytes.Contains(buf[:n], r.canon) {
				r.report("memory", line)
			}
		}
	}
}

// seize takes what it can of a process by its descriptors.
func (r *resident) seize(pid int) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	for n := 3; n < 32; n++ {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Dev != r.root.Dev {
			r.report("folder by pidfd", n)
		}
		unix.Close(fd)
	}
}

// fields are those of a process's status.
func fields(pid int) map[string]string {
	m := map[string]string{}
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			m[key] = strings.TrimSpace(value)
		}
	}
	return m
}

func caps(hex string) uint64 {
	n, _ := strconv.ParseUint(hex, 16, 64)
	return n
}

const canary = "CANARY=of-another-pod-not-to-be-seen"

// testResident has residents look at everything that the runtime does.
func testResident(t *testing.T, n *node, capability string, shared, userns bool) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name += "-victim" }).start(t, func(c *runtimeapi.ContainerConfig) {
		key, value, _ := strings.Cut(canary, "=")
		c.Envs = []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}}
	})
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		if userns {
			userNamespace(300000)(c)
		}
		if shared {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}
	})
	hidden := []byte(canary)
	for i := range hidden {
		hidden[i] ^= 1
	}
	r := p.start(t, func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Name, c.LogPath = "resident", "resident.log"
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: self, ContainerPath: "/resident", Readonly: true})
		c.Command = []string{"/resident", residentArg}
		c.Envs = []*runtimeapi.KeyValue{{Key: "CANARY_XOR", Value: hidden}}
		if capability != "" {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{capability}}
		}
	})
	r.await(t, "READY")

	n.everything(t, victim, p, r)
	// A careless process beside it is found: it can be seen that it looks.
	if capability == "SYS_PTRACE" && !userns {
		careless(t, r)
	}
	for line := range strings.Lines(r.logged(t)) {
		if strings.Contains(line, "FOUND") && !strings.Contains(line, "careless") {
			t.Errorf("the resident found: %s", line)
		}
	}
	log := strings.Split(r.logged(t), "SEEN ")
	t.Logf("processes caught before execve: %s", strings.TrimSpace(log[len(log)-1]))
}

// everything has the runtime do what it can beside a resident.
func (n *node) everything(t *testing.T, victim *container, p *pod, r *container) {
	t.Helper()
	var wg sync.WaitGroup
	var failed atomic.Value
	ctx, stop := context.WithTimeout(t.Context(), pace.Scale(40*time.Second))
	defer stop()
	for range 2 {
		wg.Go(func() {
			for range 60 {
				_, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: r.id, Cmd: []string{"/resident", "-test.run=^$"}, Timeout: 20})
				if err != nil {
					failed.Store(err)
				}
				// A pod's secret passes through the keeper at the same time.
				if _, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: victim.id, Cmd: []string{"true"}, Timeout: 20}); err != nil {
					failed.Store(err)
				}
			}
		})
	}
	wg.Wait()
	if err, _ := failed.Load().(error); err != nil {
		t.Errorf("exec: %v", err)
	}
	for i := range 5 {
		beside := p.start(t, named(fmt.Sprintf("beside-%d", i)), sh("sleep 0.05"))
		beside.wait(t)
		beside.remove(t)
	}
	attachOnce(t, r)
	r.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 512})
	call(t, n.Runtime.ListContainerStats, &runtimeapi.ListContainerStatsRequest{})
	call(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: r.id, Verbose: true})
}

// attachOnce executes with a terminal.
func attachOnce(t *testing.T, r *container) {
	t.Helper()
	var out bytes.Buffer
	o := remotecommand.StreamOptions{Stdout: &out, Tty: true}
	if err := dialer(dialSPDY).session(t, r.execURL(t, o, "tty"), o); err != nil {
		t.Errorf("exec with a terminal: %v", err)
	}
	if !strings.Contains(out.String(), "/dev/pts/") {
		t.Errorf("the command's terminal is %q", out.String())
	}
}

// await waits for a word in a container's log.
func (c *container) await(t *testing.T, word string) {
	t.Helper()
	for end := time.Now().Add(pace.Scale(30 * time.Second)); !strings.Contains(c.logged(t), word); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q is not in the log: %s", word, c.logged(t))
		}
	}
}

// careless joins the resident's PID namespace as no runtime should: with the
// host's root.
func careless(t *testing.T, r *container) {
	t.Helper()
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(r.pid(t)), "-p", "sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), canary)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, pid := range childrenOf(cmd.Process.Pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for _, want := range []string{"FOUND root", "FOUND environ", "FOUND capabilities"} {
		r.await(t, want)
	}
}

func childrenOf(pid int) (list []int) {
	for _, f := range strings.Fields(slurp(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))) {
		if n, err := strconv.Atoi(f); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// hostFacts are what no container may change.
func hostFacts(t *testing.T) map[string]string {
	t.Helper()
	facts := map[string]string{}
	agents, err := filepath.Glob("/sys/fs/cgroup/*/release_agent")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(agents, "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe", "/etc/hostname") {
		facts[path] = slurp(path)
	}
	return facts
}

// TestResident has programs that look at everything live in containers of each
// kind while the runtime works beside them: they find nothing that is not theirs.
func TestResident(t *testing.T) {
	n := newNode(t, lab.Options{})
	before := hostFacts(t)
	for _, capability := range []string{"", "SYS_PTRACE", "SYS_ADMIN", "NET_ADMIN", "DAC_READ_SEARCH", "ALL"} {
		for _, shared := range []bool{false, true} {
			for _, userns := range []bool{false, true} {
				name := fmt.Sprintf("capability %s, shared PID namespace %v, user namespace %v", capability, shared, userns)
				n.run(t, name, func(t *testing.T) { testResident(t, n, capability, shared, userns) })
			}
		}
	}
	for path, was := range before {
		if now := slurp(path); now != was {
			t.Errorf("%s became %q, was %q", path, now, was)
		}
	}
}
