package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"crisp/test/testkit/pace"
)

// stopTime is how long a process may take to exit after SIGTERM.
const stopTime = 20 * time.Second

// Process is a program running in the background, its output in a file.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has exited
	err  error         // why, set before done is closed
}

// StartProcess starts a program with env added to the environment.
func StartProcess(log string, env []string, binary string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()

	p := &Process{cmd: exec.Command(binary, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), env...)

	// Its own process group, so that ^C reaches only the program that started
	// it, which then stops everything in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}

	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// WaitUntil polls ready until it is true, the process exits or ctx ends.
func (p *Process) WaitUntil(ctx context.Context, limit time.Duration, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()

	for !ready() {
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s exited: %w: %s", filepath.Base(p.cmd.Path), errors.Join(p.err, os.ErrProcessDone), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", filepath.Base(p.cmd.Path), ctx.Err(), p.tail())
		}
	}

	return nil
}

// Stop terminates the process, and kills it if it does not exit.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have exited already
	select {
	case <-p.done:
		return nil
	case <-time.After(pace.Scale(stopTime)):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not exit within %v of SIGTERM and was killed: %s", filepath.Base(p.cmd.Path), stopTime, p.tail())
}

// tail is the end of the log.
func (p *Process) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const most = 2000
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return strings.TrimSpace(string(data))
}

// PID is the process's ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }
