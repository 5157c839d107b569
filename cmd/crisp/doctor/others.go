package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/cri/admin"
)

const (
	// askTime bounds a question to another daemon.
	askTime = 2 * time.Second
	// startTime is how long one that starts is waited for, and retryTime how often it
	// is asked.
	startTime, retryTime = 5 * time.Second, 200 * time.Millisecond
)

// maxOthers bounds how many other daemons are asked.
const maxOthers = 16

// known lists what this daemon and all others of the node know: nothing of theirs is a
// leftover, wherever it is. An error means that one of the others could not be asked.
func (n *Node) known(ctx context.Context, own admin.State) (known, error) {
	k := knownTo(own)
	others := slices.DeleteFunc(daemons(), func(pid int) bool { return pid == own.PID })
	if len(others) > maxOthers {
		return k, fmt.Errorf("%d other processes are crisp, which may share them", len(others))
	}
	var errs []error
	for _, pid := range others {
		state, err := patientStateOf(ctx, pid)
		if err != nil && runs(pid) {
			errs = append(errs, fmt.Errorf("another crisp (pid %d) may share them, and does not answer: %w", pid, err))
			continue
		}
		for id := range knownTo(state) {
			k[id] = true
		}
	}
	return k, errors.Join(errs...)
}

// patientStateOf is stateOf for a daemon that may be starting.
func patientStateOf(ctx context.Context, pid int) (admin.State, error) {
	for end := time.Now().Add(startTime); ; {
		state, err := stateOf(ctx, pid)
		if err == nil || !runs(pid) || time.Now().After(end) {
			return state, err
		}
		select {
		case <-time.After(retryTime):
		case <-ctx.Done():
			return state, ctx.Err()
		}
	}
}

// daemons lists the processes that execute crisp serve.
func daemons() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var list []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && runs(pid) {
			list = append(list, pid)
		}
	}
	return list
}

// runs reports whether a process executes crisp serve, as root, and in this PID
// namespace: those of containers may pretend.
func runs(pid int) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Uid != 0 {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	if theirs, e := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || e != nil || theirs != own {
		return false
	}

	program, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil || filepath.Base(strings.TrimSuffix(program, " (deleted)")) != "crisp" {
		return false
	}
	args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	words := strings.Split(string(args), "\x00")
	return err == nil && len(words) > 1 && words[1] == "serve"
}

// stateOf asks a daemon, which may have other namespaces.
func stateOf(ctx context.Context, pid int) (state admin.State, err error) {
	path, err := adminSocket(pid)
	if err != nil {
		return state, err
	}
	// The address of a socket is short, so its directory is opened.
	dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "root", filepath.Dir(path)))
	if err != nil {
		return state, err
	}
	defer dir.Close()

	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	c := admin.NewClient(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), admin.Socket))
	defer c.Close()
	if err := c.Get(ctx, admin.StatePath, &state); err != nil {
		return state, err
	}
	if !state.Ready {
		return state, errors.New("it is starting")
	}
	return state, nil
}

// adminSocket is the path of the admin socket that a process listens on.
func adminSocket(pid int) (string, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return "", err
	}
	open := map[string]bool{}
	for _, fd := range fds {
		if link, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err == nil {
			open[link] = true
		}
	}

	table, err := os.ReadFile(filepath.Join(dir, "net", "unix"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) == 8 && filepath.Base(f[7]) == admin.Socket && open["socket:["+f[6]+"]"] {
			return f[7], nil
		}
	}
	return "", errors.New("it has no admin socket")
}
