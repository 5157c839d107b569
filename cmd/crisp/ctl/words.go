package ctl

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/cri/admin"
	"crisp/runtime/untrusted"
)

// maxWords bounds a text that comes from a container, an image or a plugin, in bytes.
const maxWords = 4 << 10

// clean is a text of one line that is safe on a terminal.
func clean(text string) string {
	return strings.ReplaceAll(untrusted.Of(text).Message(maxWords), "\n", "\n    ")
}

// oneLine is clean, without the line ends that a name may have.
func oneLine(text string) string { return untrusted.Of(text).Name(maxWords) }

// startError is the CRI's reason for the end of a container that was not started.
const startError = "StartError"

// fate describes a container: what it does, or how it ended. starting says that its
// start is under way.
func fate(c admin.Container, starting bool, now time.Time) paragraph {
	p := paragraph{mark: "container " + c.Name}
	if c.Attempt > 0 {
		p.mark += fmt.Sprintf(" (attempt %d)", c.Attempt)
	}
	switch {
	case c.State == "running":
		p.style, p.text = good, fmt.Sprintf("running for %s as process %d", duration(now.Sub(c.StartedAt)), c.PID)
		return p
	case c.State == "created" && starting:
		p.style, p.text = doubt, fmt.Sprintf("created %s ago and being started", duration(now.Sub(c.CreatedAt)))
		return p
	case c.State == "created" && c.Phase == "ready":
		p.style, p.text = doubt, fmt.Sprintf("created %s ago and not started: nobody has asked for that yet", duration(now.Sub(c.CreatedAt)))
		return p
	case c.State == "created":
		p.style, p.text = doubt, "being created, at \""+c.Phase+"\""
		return p
	}

	ended := "ended " + duration(now.Sub(c.FinishedAt)) + " ago"
	if c.Reason == startError {
		p.style, p.text, p.todo = bad, "could not be started, "+duration(now.Sub(c.FinishedAt))+" ago: "+c.Message, advice("", c.Message)
		return p
	}
	p.style, p.text = bad, fmt.Sprintf("%s after %s: ", ended, duration(c.FinishedAt.Sub(c.StartedAt)))
	what, todo := ending(c)
	p.text, p.todo = strings.TrimSpace(p.text+what), todo
	if c.ExitCode == 0 {
		p.style = plain
	}
	return p
}

// signalBase is what shells and runtimes add to a signal's number.
const signalBase = 128

// ending is the end of a container in words, and what to do about it.
func ending(c admin.Container) (text, todo string) {
	log := ""
	if c.LogPath != "" {
		log = "; crisp logs shows what it wrote"
	}

	signal := unix.Signal(c.ExitCode - signalBase)
	switch {
	case c.ExitCode == 0:
		return "its program succeeded", ""
	case c.Reason == "OOMKilled":
		limit := "the node, or the pod, has no memory left"
		if c.MemoryLimit > 0 {
			limit = fmt.Sprintf("its cgroup %s has a limit of %s", c.Cgroup, bytesOf(uint64(c.MemoryLimit)))
		}
		return fmt.Sprintf("the kernel killed it for lack of memory (OOM): %s. %s", limit, c.Message),
			"raise resources.limits.memory, or find what needs so much" + log
	case c.Reason == "Unknown":
		return "how it ended is not known: the node, or daemon and keeper together, ended before. " + c.Message, "nothing, unless that happens again: see the journal of crisp and crisp-keeper"
	case signal == unix.SIGKILL:
		return "it was killed (SIGKILL) although it had memory left: by a stop whose grace period had ended, by a failed liveness probe, or by somebody on the node. " + c.Message,
			"kubectl describe pod says whether kubelet stopped it; a program that takes longer to stop needs a longer terminationGracePeriodSeconds" + log
	case signal == unix.SIGTERM:
		return "it ended on SIGTERM, as on an ordinary stop. " + c.Message, ""
	case signal == unix.SIGSEGV || signal == unix.SIGBUS || signal == unix.SIGILL || signal == unix.SIGABRT || signal == unix.SIGFPE:
		return fmt.Sprintf("its program crashed (%s). %s", unix.SignalName(signal), c.Message), "that is a fault of the program, or an image for another processor" + log
	case signal == unix.SIGSYS:
		return "its seccomp profile forbids a system call that it made. " + c.Message, "the kernel's log names the call (type=SECCOMP): allow it in the profile, or use another"
	case c.ExitCode == signalBase-1:
		return "code 127: a shell did not find the program", "check the command, and PATH in the image" + log
	case c.ExitCode == signalBase-2:
		return "code 126: a shell could not execute the program", "check its mode, and that the volume is not mounted noexec" + log
	case c.ExitCode > signalBase && unix.SignalName(signal) != "":
		return fmt.Sprintf("code %d, as after %s. %s", c.ExitCode, unix.SignalName(signal), c.Message), strings.TrimPrefix(log, "; ")
	}
	return fmt.Sprintf("its program failed with code %d. %s", c.ExitCode, c.Message), strings.TrimPrefix(log, "; ")
}

// counsel is what to do about a text in an error, or a stage. Some only help while a
// stage lasts.
type counsel struct {
	about, todo string
	waits       bool
}

// unauthorized is what to do about a registry that refuses a pull.
const unauthorized = "check imagePullSecrets: the registry wants credentials, or others; and the image's name"

// counsels are looked through in order: errors first, which say more than stages.
func counsels() []counsel {
	return []counsel{
		{"HTTP status 401", unauthorized, false},
		{"HTTP status 403", unauthorized, false},
		{"HTTP status 429", "the registry limits how often it is asked: log in, wait, or name a mirror in hosts.toml", false},
		{"x509: ", "the registry's certificate is not trusted: name its authority in hosts.toml, and check the clock", false},
		{"registry unavailable", "check the registry's address, name resolution, routes and proxies: crisp doctor asks the registries", false},
		{"HTTP status 404", "check the image's name and tag; some registries answer so, too, without imagePullSecrets", false},
		{"image not found locally", "pull the image (crisp pull), or use another imagePullPolicy than Never", false},
		{"no such user or group", "check runAsUser, or the user that the image names: the image's /etc/passwd and /etc/group lack it", false},
		{"cannot be mounted on a file", "mount a file on a file, and a directory on a directory: see mountPath, subPath and the volume", false},
		{"not a directory", "check the volumes and the working directory: a part of the path in the error is a file", false},
		{"executable file not found", "check the command: the image has no such program there, or in its PATH", false},
		{"exec format error", "the image is for another processor: pull it for this one, or build it for several", false},
		{"no space left on device", "the disk is full: crisp df says by what", false},
		{"disk quota exceeded", "the quota of the file system is used up: crisp df says by what", false},
		{"memory limit of", "raise resources.limits.memory: the program does not even start in so little", false},
		{"no such file or directory", "check the command, the volumes and the image: a path in the error does not exist; for a script it may be its interpreter", false},
		{"operation not permitted", "the kernel or its security module forbids that: crisp doctor, and the kernel's log", false},
		{"permission denied", "check modes and owners, runAsUser and the security module's log: a program must be executable for the user", false},
		{"too many open files", "a limit of descriptors is reached: crisp doctor", false},
		{"no IP addresses available", "the network has no free address: see the range of the network configuration, and crisp network show for who has them", false},
		{"no network configuration", "install a network add-on, or write a configuration with crisp network init", false},
		{"failed to find plugin", "install the plugin in a directory of cni_bin_dirs: crisp doctor names those that are missing", false},
		{"required plugin", "start the NRI plugin that nri_required_plugins names", false},
		{"i/o timeout", "something does not answer over the network: check the address in the error", false},
		{"attach network", "a network plugin works or failed: its own log says more; crisp doctor looks at configuration and plugins", false},
		{"ask plugins", "an NRI plugin has not answered: see its log", false},
		{"wait for another operation", "operations on a pod run one after the other: what the other one waits for is said above", true},
		{"after SIGKILL", "a process that cannot be killed waits in the kernel, mostly for a disk, NFS or FUSE: bring that back, or restart the node", true},
		{"exit after signal", "it is killed when the time is over", true},
		{"run plan", "a hook, or a frozen or throttled cgroup, may hold the start up", true},
		{"prepare root file system", "the disk may be slow or full: crisp df, and the kernel's log", false},
	}
}

// advice is what to do about an error at a stage, or a stage that lasts, "" if nothing
// is known.
func advice(stage, text string) string {
	for _, c := range counsels() {
		if c.waits && text != "" {
			continue
		}
		if strings.Contains(text, c.about) || strings.Contains(stage, c.about) {
			return c.todo
		}
	}
	return ""
}
