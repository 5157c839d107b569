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
	root   unix.Stat_t
	own    map[string]string // the fields of its own status
	shared bool              // other containers are in the PID namespace, as the pod wants it
	canary []byte            // what another pod has in its environment
	node   string            // a folder that only the node has
	found  map[string]bool
	seen   int // processes that were caught before their execve
}

// live is the resident's life.
func live() {
	r := &resident{
		found: map[string]bool{}, own: fields(os.Getpid()),
		shared: os.Getenv("SHARED") == "true", node: os.Getenv("NODE"),
	}
	// It must not find its own argument.
	for _, b := range []byte(os.Getenv("CANARY_XOR")) {
		r.canary = append(r.canary, b^1)
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
	early := strings.Contains(exe, "crisp-keeper")
	if early {
		r.seen++
	}

	for _, link := range []string{"root", "cwd/../../../../../../../../../../../.."} {
		if _, err := os.Stat(dir + "/" + link + r.node); err == nil {
			r.report("the node by "+link, exe)
		}
		// The first process of a pod has an empty root, of which nothing can be made.
		var st unix.Stat_t
		if unix.Stat(dir+"/"+link, &st) == nil && (st.Dev != r.root.Dev || st.Ino != r.root.Ino) && !r.shared {
			r.report("another "+link, exe)
		}
		if strings.HasSuffix(exe, "pause (deleted)") && os.Mkdir(dir+"/"+link+"/x", 0o755) == nil {
			r.report("a place to write in", exe)
		}
	}
	if env, _ := os.ReadFile(dir + "/environ"); bytes.Contains(env, r.canary) {
		r.report("environ", exe)
	}
	status := fields(pid)
	if status["CapPrm"] != "" && caps(status["CapPrm"])&^caps(r.own["CapBnd"]) != 0 {
		r.report("capabilities", exe, " ", status["CapPrm"])
	}
	if early {
		r.program(dir)
		if status["Seccomp"] != "" && status["Seccomp"] != r.own["Seccomp"] {
			r.early(dir, "filter", status["Seccomp"])
		}
		r.descriptors(dir)
		r.memory(dir)
	}
	r.seize(pid)
}

// program tries to write to the program of a process on its way, now and by a
// descriptor when it is not executed any more (CVE-2019-5736).
func (r *resident) program(dir string) {
	f, err := os.Open(dir + "/exe")
	if err != nil {
		return
	}
	defer f.Close()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil || !strings.Contains(name, "crisp-keeper") {
		return
	}

	time.Sleep(time.Millisecond)
	for _, path := range []string{dir + "/exe", fmt.Sprintf("/proc/self/fd/%d", f.Fd())} {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		if current, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd())); err == nil && current == name {
			if _, err := w.Write([]byte("#!/bin/evil")); err == nil {
				r.report("a program that can be written to", name)
			}
		}
		w.Close()
	}
}

// early reports what a process has before its execve, unless that has taken
// place by now: then it may be the program's.
func (r *resident) early(dir, kind string, detail ...any) {
	if exe, _ := os.Readlink(dir + "/exe"); strings.Contains(exe, "crisp-keeper") {
		r.report(kind, detail...)
	}
}

// descriptors looks at what is open in a process on its way.
func (r *resident) descriptors(dir string) {
	list, _ := os.ReadDir(dir + "/fd")
	for _, fd := range list {
		n, _ := strconv.Atoi(fd.Name())
		link, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err == nil && n > 2 && !strings.HasPrefix(link, "socket:") {
			r.early(dir, "descriptor", link)
		}
		if _, err := os.Stat(dir + "/fd/" + fd.Name() + "/../../../../../../../../.." + r.node); err == nil {
			r.report("the node by a descriptor", link)
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
		var access string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access); n < 3 || !strings.HasPrefix(access, "rw") {
			continue
		}
		for at := from; at < to; at += int64(len(buf)) {
			n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if bytes.Contains(buf[:n], r.canary) {
				r.early(dir, "memory", line)
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

// testResident has residents look at everything that the runtime does.
func testResident(t *testing.T, n *node, capability string, shared, userns bool) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	canary := fmt.Sprintf("of-another-pod-%d", time.Now().UnixNano())
	victim := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name += "-victim" }).start(t, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "CANARY", Value: []byte(canary)}}
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
	same := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: self, ContainerPath: "/resident", Readonly: true})
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		if capability != "" {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{capability}}
		}
		if capability != "" && capability != "ALL" {
			c.Linux.SecurityContext.Capabilities.DropCapabilities = []string{"ALL"}
		}
	}
	r := p.start(t, same, func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Name, c.LogPath = "resident", "resident.log"
		c.Command = []string{"/resident", residentArg}
		c.Envs = []*runtimeapi.KeyValue{
			{Key: "CANARY_XOR", Value: hidden}, {Key: "NODE", Value: []byte(n.path("state"))}, {Key: "SHARED", Value: []byte(strconv.FormatBool(shared))},
		}
	})
	r.await(t, "READY")

	n.everything(t, victim, p, r, same)
	for line := range strings.Lines(r.logged(t)) {
		if strings.Contains(line, "FOUND") {
			t.Errorf("the resident found: %s", line)
		}
	}
	// A careless process beside it is found: it can be seen that it looks.
	if capability == "SYS_PTRACE" && !userns {
		careless(t, r, canary)
	}
	log := strings.Split(r.logged(t), "SEEN ")
	t.Logf("processes caught before execve: %s", strings.TrimSpace(log[len(log)-1]))
}

// everything has the runtime do what it can beside a resident.
func (n *node) everything(t *testing.T, victim *container, p *pod, r *container, same change) {
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
		beside := p.start(t, same, named(fmt.Sprintf("beside-%d", i)), sh("sleep 0.05"))
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
func careless(t *testing.T, r *container, canary string) {
	t.Helper()
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(r.pid(t)), "-p", "sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "CANARY="+canary)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, pid := range childrenOf(cmd.Process.Pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		// It has to reap its child, or the container's namespace would never end.
		_ = cmd.Wait()
	}()
	for _, want := range []string{"FOUND the node by root", "FOUND environ", "FOUND capabilities"} {
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

// testOwnProgram has the runtime execute its own program in containers, as their
// first process, as a script's interpreter and as a command.
func testOwnProgram(t *testing.T, n *node) {
	p := n.pod(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := p.start(t)
	for _, cmd := range []string{"/proc/self/exe", "/mnt/script"} {
		failing := p.create(t, named("own"), mount(dir, "/mnt"), command(cmd, "serve"))
		if err := failure(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: failing.id}); err == nil {
			if st := failing.wait(t); st.ExitCode == 0 {
				t.Errorf("%s ended well", cmd)
			}
		}
		failing.remove(t)
	}
	if r := c.exec(t, "sh", "-c", "ls -l /proc/self/exe"); strings.Contains(string(r.Stdout), "crisp") {
		t.Errorf("a command's program is %s", r.Stdout)
	}
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
	n.run(t, "CVE-2019-5736", func(t *testing.T) { testOwnProgram(t, n) })
	for path, was := range before {
		if now := slurp(path); now != was {
			t.Errorf("%s became %q, was %q", path, now, was)
		}
	}
}
