package admin

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"crisp/runtime/procstat"
	"crisp/runtime/untrusted"
)

const (
	maxProcesses = 20
	// Bounds of what is told of a process, in bytes and lines.
	maxCommand = 256
	maxStack   = 24
	// maxEnviron bounds what is read of an environment, in bytes.
	maxEnviron = 256 << 10
	// maxFile bounds what is read of another file of a process, in bytes.
	maxFile = 8 << 10
)

// Process is a process that an operation may wait for.
type Process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	// State is the kernel's, in words, and Stack where in the kernel it is.
	State string   `json:"state"`
	Stack []string `json:"stack,omitempty"`
	// Verb is what a network plugin was called for.
	Verb string `json:"verb,omitempty"`
}

// pluginsOf finds the network plugins that run for a pod, among the descendants of
// this process.
func pluginsOf(sandboxID string) []Process {
	if sandboxID == "" {
		return nil
	}
	var found []Process
	for _, pid := range descendants(os.Getpid()) {
		environ := variables(pid)
		if !slices.Contains(environ, "CNI_CONTAINERID="+sandboxID) {
			continue
		}

		for _, p := range processes([]int{pid}) {
			for _, v := range environ {
				if verb, ok := strings.CutPrefix(v, "CNI_COMMAND="); ok {
					p.Verb = untrusted.Of(verb).Name(maxCommand)
				}
			}
			found = append(found, p)
		}
	}
	return found[:min(len(found), maxProcesses)]
}

// descendants of a process, from a snapshot.
func descendants(of int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, err := procstat.Read(pid); err == nil {
			children[st.Parent] = append(children[st.Parent], pid)
		}
	}

	var all []int
	for next := children[of]; len(next) > 0; next = next[1:] {
		all = append(all, next[0])
		next = append(next, children[next[0]]...)
	}
	return all
}

// variables is the environment of a process, none if it cannot be read.
func variables(pid int) []string {
	data, err := head("/proc/"+strconv.Itoa(pid)+"/environ", maxEnviron)
	if err != nil {
		return nil
	}
	return strings.Split(string(data), "\x00")
}

// head returns the beginning of a file, whose length its process may have chosen.
func head(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// processes describes processes. Those that have exited are left out.
func processes(pids []int) []Process {
	var list []Process
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		st, err := procstat.Read(pid)
		if err != nil {
			continue
		}
		dir := "/proc/" + strconv.Itoa(pid) + "/"
		command, err := head(dir+"cmdline", maxFile)
		if err != nil {
			continue
		}
		text := strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte(" "))))
		if text == "" {
			name, _ := head(dir+"comm", maxFile) // a kernel thread, or a zombie
			text = "[" + strings.TrimSpace(string(name)) + "]"
		}

		p := Process{PID: pid, Command: untrusted.Of(text).Name(maxCommand), State: inWords(st.State)}
		stack, _ := head(dir+"stack", maxFile) // not every kernel has it
		for line := range strings.Lines(string(stack)) {
			if _, function, ok := strings.Cut(strings.TrimSpace(line), "] "); ok && len(p.Stack) < maxStack {
				p.Stack = append(p.Stack, function)
			}
		}
		list = append(list, p)
	}
	return list
}

// inWords is a state of a process in words.
func inWords(state byte) string {
	switch state {
	case 'R':
		return "running"
	case 'S':
		return "sleeping"
	case 'D':
		return "in uninterruptible sleep, in which nothing can kill it"
	case 'T':
		return "stopped by a signal"
	case 't':
		return "stopped by a debugger"
	case 'Z', 'X':
		return "dead, and not reaped by its parent yet"
	case 'I':
		return "idle"
	}
	return string(state)
}
