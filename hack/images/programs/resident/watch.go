package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watcher repeatedly inspects every process that it can see: their privileges
// change until they execute their program.
type watcher struct {
	root   unix.Stat_t
	own    map[string]string // the fields of its own status
	shared bool              // other containers are in its PID namespace, as the pod requests
	secret []byte            // in another pod's environment
	node   string            // a path that only the node has
	found  map[string]bool

	looked map[int]int // how often it inspected a process
	last   int         // the newest process ID
	total  int         // processes seen
	caught int         // of which still ran the runtime's program
}

func newWatcher() *watcher {
	w := &watcher{
		own: fields("/proc/self/status"), shared: os.Getenv("SHARED") == "true", node: os.Getenv("NODE"),
		found: map[string]bool{}, looked: map[int]int{},
	}
	for _, b := range []byte(os.Getenv("SECRET_XOR")) {
		w.secret = append(w.secret, b^1)
	}
	if err := unix.Stat("/", &w.root); err != nil {
		w.report("nothing", "no root: ", err)
	}
	return w
}

func watch() {
	runtime.LockOSThread() // tracees belong to the thread
	w := newWatcher()
	w.surroundings()
	fmt.Println("READY")

	said, around := time.Now(), time.Now()
	for {
		w.round()
		if time.Since(said) > 200*time.Millisecond {
			fmt.Printf("LOOKED %d processes, %d before their program\n", w.total, w.caught)
			said = time.Now()
		}
		if time.Since(around) > time.Second {
			w.surroundings()
			around = time.Now()
		}
	}
}

// round inspects all processes, and new ones.
func (w *watcher) round() {
	proc, err := os.Open("/proc")
	if err != nil {
		w.report("nothing", "no /proc: ", err)
		return
	}

	names, _ := proc.Readdirnames(-1)
	proc.Close()
	alive := map[int]bool{}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() {
			alive[pid] = true
			w.look(pid)
			w.last = max(w.last, pid)
		}
		w.next()
	}

	for pid := range w.looked {
		if !alive[pid] {
			delete(w.looked, pid)
		}
	}
}

// next looks for new processes by their expected IDs.
func (w *watcher) next() {
	for pid := w.last + 1; pid < w.last+4; pid++ {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) != nil {
			continue
		}
		w.last = pid
		// Threads of its own have such names, too.
		if unix.Stat(fmt.Sprintf("/proc/self/task/%d", pid), &st) != nil {
			w.look(pid)
		}
	}
}

func (w *watcher) report(kind string, detail ...any) {
	line := "FOUND " + kind + " " + strings.ReplaceAll(fmt.Sprint(detail...), "\n", " ")
	if !w.found[line] {
		w.found[line] = true
		fmt.Println(line)
	}
}

// look inspects one process: a new one several times, stopped if possible; an
// old one occasionally.
func (w *watcher) look(pid int) {
	n := w.looked[pid]
	w.looked[pid] = n + 1
	if n == 0 {
		w.total++
	}
	if n > 8 && n%64 != 0 {
		return
	}

	dir := fmt.Sprintf("/proc/%d", pid)
	early := isRuntime(dir)
	if isBase(dir) {
		w.base(pid, dir)
		return
	}

	// Every other one keeps running while it is inspected.
	if early && pid%2 == 0 && w.stop(pid) {
		defer w.let(pid)
	}
	if early {
		w.caught++
		w.program(dir)
	}

	w.places(dir)
	w.status(dir, early)
	if env, _ := os.ReadFile(dir + "/environ"); early && len(env) > 0 {
		w.early(dir, "environment", len(env), " bytes")
	}

	w.secrets(dir, n < 3)
	w.descriptors(dir, early)
	if n < 3 {
		w.take(pid, early)
	}
}

// isRuntime reports whether a process has not executed its program yet: it runs
// a program that no image has.
func isRuntime(dir string) bool {
	return ofRuntime(dir + "/exe")
}

// ofRuntime reports whether a link in procfs points to a program that no image
// has.
func ofRuntime(link string) bool {
	program, _ := os.Readlink(link)
	return strings.Contains(program, "crisp") || strings.Contains(program, "memfd:")
}

// isBase reports whether a process is the first of a PID namespace that a pod
// shares: it never executes another program.
func isBase(dir string) bool {
	exe, _ := os.Readlink(dir + "/exe")
	return strings.Contains(exe, "memfd:pause")
}

// base inspects the pod's own process: it must not give access to more than
// this container has, with any capability.
func (w *watcher) base(pid int, dir string) {
	w.program(dir)
	w.places(dir)
	w.secrets(dir, true)
	w.descriptors(dir, false)

	before := fields(dir + "/status")
	if !w.stop(pid) {
		return
	}

	w.let(pid)
	if before["Seccomp"] == "0" && w.own["Seccomp"] != "0" {
		w.report("taken over", "process without a filter", exe(dir))
	}
	if bits(before["CapPrm"])&^bits(w.own["CapBnd"]) != 0 {
		w.report("taken over", "process with ", before["CapPrm"], exe(dir))
	}
}

// early reports the privileges of a process before its program, unless that
// already runs.
func (w *watcher) early(dir, kind string, detail ...any) {
	if isRuntime(dir) {
		w.report(kind, detail...)
	}
}

// stop stops a process by tracing it. One that has died meanwhile is waited
// for, too: its parent is only notified after its tracer.
func (w *watcher) stop(pid int) bool {
	if unix.PtraceSeize(pid) != nil {
		return false
	}
	_ = unix.PtraceInterrupt(pid) // fails if it has died
	var ws unix.WaitStatus
	_, err := unix.Wait4(pid, &ws, unix.WALL, nil)
	return err == nil && ws.Stopped()
}

// let continues a process. It only fails for one that was killed.
func (w *watcher) let(pid int) {
	if unix.PtraceDetach(pid) != nil {
		_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
	}
}

// program writes to the executable of a process of the runtime (CVE-2019-5736).
func (w *watcher) program(dir string) {
	held, err := unix.Open(dir+"/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(held)

	// The process may execute its program meanwhile: that is this container's own
	// shell, which it may well overwrite, but then no command of the test runs.
	program := fmt.Sprintf("/proc/self/fd/%d", held)
	if !ofRuntime(program) {
		return
	}

	for range 20 {
		fd, err := unix.Open(program, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it is busy as long as it runs
		}

		first := make([]byte, 1)
		_, _ = unix.Pread(fd, first, 0)
		if n, err := unix.Pwrite(fd, first, 0); n == 1 && err == nil {
			w.report("writable program", dir)
		}

		if unix.Ftruncate(fd, 0) == nil {
			w.report("truncated program", dir)
		}
		unix.Close(fd)
	}
}

// places tries the root and the working directory of a process.
func (w *watcher) places(dir string) {
	const up = "/../../../../../../../../../../../.."
	for _, link := range []string{"root", "cwd", "cwd" + up} {
		var st unix.Stat_t
		if unix.Stat(dir+"/"+link+w.node, &st) == nil {
			w.report("node", "by ", link, exe(dir))
		}
		if link != "cwd" && unix.Stat(dir+"/"+link, &st) == nil && (st.Dev != w.root.Dev || st.Ino != w.root.Ino) && !w.shared {
			w.report("root", "another by ", link, exe(dir))
		}
	}

	if os.Mkdir(dir+"/root/.resident", 0o700) == nil {
		_ = os.Remove(dir + "/root/.resident") // of a container, where that is allowed
		if isRuntime(dir) {
			return
		}
		if e := exe(dir); strings.Contains(e, "pause") && w.shared {
			w.report("writable base", e)
		}
	}
}

func exe(dir string) string {
	link, _ := os.Readlink(dir + "/exe")
	return " of " + link
}

// status compares the privileges of a process, and of its threads, with the
// maximum in this container.
func (w *watcher) status(dir string, early bool) {
	paths := []string{dir + "/status"}
	if early {
		tasks, _ := os.ReadDir(dir + "/task")
		for _, t := range tasks {
			paths = append(paths, dir+"/task/"+t.Name()+"/status")
		}
	}

	for _, path := range paths {
		f := fields(path)
		for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapBnd"} {
			if f[set] != "" && bits(f[set])&^bits(w.own["CapBnd"]) != 0 {
				w.report("capabilities", set, " ", f[set], exe(dir))
			}
		}

		if f["Seccomp"] == "0" && w.own["Seccomp"] != "0" {
			w.report("no filter", exe(dir))
		}
		if f["NoNewPrivs"] == "0" && w.own["NoNewPrivs"] == "1" {
			w.report("new privileges", exe(dir))
		}
	}
}

// secrets searches the environment, the arguments and the memory of a process.
func (w *watcher) secrets(dir string, whole bool) {
	for _, file := range []string{"environ", "cmdline", "auxv"} {
		if data, _ := os.ReadFile(dir + "/" + file); bytes.Contains(data, w.secret) {
			w.report("secret", file, exe(dir))
		}
	}

	maps, err := os.ReadFile(dir + "/maps")
	mem, memErr := os.Open(dir + "/mem")
	if err != nil || memErr != nil || !whole {
		return
	}
	defer mem.Close()

	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if n, _ := fmt.Sscanf(line, "%x-%x", &from, &to); n < 2 {
			continue
		}

		for at := from; at < min(to, from+64<<20); at += int64(len(buf)) {
			n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if n <= 0 {
				break
			}
			if bytes.Contains(buf[:n], w.secret) {
				w.report("secret", "memory", exe(dir))
			}
		}
	}
}

func fields(path string) map[string]string {
	m := map[string]string{}
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			m[key] = strings.TrimSpace(value)
		}
	}
	return m
}

func bits(hex string) uint64 {
	n, _ := strconv.ParseUint(hex, 16, 64)
	return n
}
