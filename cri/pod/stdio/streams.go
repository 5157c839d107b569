package stdio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
)

// ErrSlow means that a client read its output too slowly and lost some.
var ErrSlow = errors.New("the client reads too slowly")

// errExitLost means that a command has exited with unknown status.
var errExitLost = fmt.Errorf("exit status unknown: the keeper died while the command ran, and the kernel does not report it: %w", client.ErrLost)

// TerminalSize is that of a terminal window in characters.
type TerminalSize struct{ Width, Height uint16 }

// Streams are the client's streams of a session. Nil means the client has none.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Resize delivers sizes for the terminal until it is closed.
	Resize <-chan TerminalSize
}

func drain(wg *sync.WaitGroup, to io.Writer, from *os.File) {
	if to != nil && from != nil {
		wg.Go(func() { copyOut(to, from) })
	}
}

// copyOut copies output until it ends, or until there is none for a while after
// the command's exit, which the file's deadline signals. A client may be slow:
// all that the command wrote is in the pipe by then, and no more than that is
// copied of what other processes write that have it open, too.
func copyOut(to io.Writer, from *os.File) {
	const mostInPipe = 1 << 20
	if _, err := io.Copy(to, from); !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}

	buf := make([]byte, 32<<10)
	for left := mostInPipe; left > 0; {
		if from.SetReadDeadline(time.Now().Add(drainTimeout)) != nil {
			return
		}
		n, err := from.Read(buf[:min(len(buf), left)])
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
		left -= n
	}
}

// followResize applies sizes to a terminal until the returned function is called.
func followResize(terminal *os.File, sizes <-chan TerminalSize) (stop func()) {
	if terminal == nil || sizes == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				resize(terminal, s)
			case <-quit:
				return
			}
		}
	}()

	return func() { close(quit); <-done }
}

func resize(terminal *os.File, s TerminalSize) {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
}
