package pages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"crisp/runtime/ordinary"
)

// maxProcesses bounds those whose memory is read, each with a descriptor.
const maxProcesses = 512

// firstFD is the descriptor of the first process in the process that reads.
const firstFD = 3

// held is a process with the descriptor that refers to it.
type held struct {
	pid  int
	file *os.File
}

// Lister lists the processes of a group.
type Lister interface {
	Pids() ([]int, error)
}

// Apart has a process of its own, which command starts, write the memory of the processes in
// groups, and has use use it block by block, each of [Size] bytes and valid during the call.
// An error of use ends it, and is returned as it is; so does the end of ctx. Processes beyond
// some hundred are left out, as is what cannot be read.
func Apart(ctx context.Context, command []string, groups []Lister, use func(block []byte) error) error {
	list, err := hold(groups)
	defer func() {
		for _, h := range list {
			h.file.Close()
		}
	}()
	if err != nil {
		return fmt.Errorf("read memory of running processes: %w", err)
	}

	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	for _, h := range list {
		cmd.Args = append(cmd.Args, strconv.Itoa(h.pid))
		cmd.ExtraFiles = append(cmd.ExtraFiles, h.file)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	from, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("read memory of running processes: %w", err)
	}
	if err := ordinary.Start(cmd); err != nil {
		return fmt.Errorf("read memory of running processes: %w", err)
	}

	uerr := blocks(from, use)
	from.Close() // it ends if it has not
	if uerr != nil {
		_ = cmd.Process.Kill()
	}
	err = cmd.Wait()
	switch {
	case uerr != nil:
		return uerr
	case ctx.Err() != nil:
		return fmt.Errorf("read memory of running processes: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("read memory of running processes: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// blocks has use use what is read, up to its end.
func blocks(from io.Reader, use func(block []byte) error) error {
	buffer := make([]byte, run)
	for {
		n, err := io.ReadFull(from, buffer)
		for block := range slices.Chunk(buffer[:n-n%Size], Size) {
			if err := use(block); err != nil {
				return err
			}
		}
		if err != nil {
			return nil // how it ended its status says
		}
	}
}

// hold returns the processes in groups.
func hold(groups []Lister) (list []held, err error) {
	for _, g := range groups {
		pids, err := g.Pids()
		if err != nil {
			return list, err
		}
		var opened []held
		for _, pid := range pids[:min(len(pids), maxProcesses-len(list))] {
			fd, err := unix.PidfdOpen(pid, 0)
			if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // or a mere thread
				continue
			}
			if err != nil {
				return append(list, opened...), fmt.Errorf("open process %d: %w", pid, err)
			}
			opened = append(opened, held{pid, os.NewFile(uintptr(fd), "pidfd")})
		}

		// One that was opened after its PID had become another's is not of the group.
		again, err := g.Pids()
		for _, h := range opened {
			if slices.Contains(again, h.pid) {
				list = append(list, h)
			} else {
				h.file.Close()
			}
		}
		if err != nil {
			return list, err
		}
	}
	return list, nil
}

// Main is what the process that reads does: it writes the memory of the processes with the
// PIDs in args, whose descriptors are those from 3 on, to w.
func Main(args []string, w io.Writer) error {
	var pids, pidfds []int
	for i, arg := range args {
		pid, err := strconv.Atoi(arg)
		if err != nil {
			return fmt.Errorf("read memory of running processes: %w", err)
		}
		pids, pidfds = append(pids, pid), append(pidfds, firstFD+i)
	}
	return write(w, pids, pidfds)
}
