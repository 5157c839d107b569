package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// syncBuffer is a buffer that can be read while a command writes it.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// onTerminal runs a command with a terminal of 40 lines of 100 columns, until it
// exits or, with enough, is interrupted, and returns what it showed.
func onTerminal(t *testing.T, cmd *exec.Cmd, enough func(string) bool) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}

	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	// ^C reaches only those that the terminal controls. When their leader exits the
	// kernel drops what they have written and nobody has read.
	controls := enough != nil
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: controls, Setctty: controls}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	if controls {
		slave.Close()
	}

	var out syncBuffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO once the terminal is closed
			out.Write(buf[:n])
			if err != nil || strings.HasSuffix(out.String(), lastWord) {
				return
			}
		}
	}()

	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if enough != nil {
		ended := false
		eventually(t, "enough output", func() bool {
			select {
			case err := <-exited:
				exited <- err
				ended = true
			default:
			}
			return ended || enough(out.String())
		})
		if !ended {
			master.Write([]byte{3}) // ^C
		}
	}
	if err := <-exited; err != nil {
		t.Errorf("%s: %v: %s", cmd, err, out.String())
	}
	if !controls {
		if _, err := slave.WriteString(lastWord); err != nil {
			t.Error(err)
		}
	}
	<-done
	return strings.TrimSuffix(out.String(), lastWord)
}

// lastWord is written to a terminal after a command has exited: what was shown before
// has been read when it is.
const lastWord = "\x00the end\x00"
