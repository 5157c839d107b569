package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"crisp/runtime/keeper/client"
)

// catch collects from now on the signals to be forwarded to the container.
func catch() chan os.Signal {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGWINCH)
	return signals
}

// passOn forwards signals to a container and, if that has a terminal, connects
// it to the command's own. The returned function ends that, after the last
// output.
func passOn(c *client.Started, signals chan os.Signal) (restore func(), err error) {
	end := func() {}
	if c.Terminal != nil {
		if end, err = connectTerminal(c.Terminal); err != nil {
			return nil, err
		}
	}

	var wg sync.WaitGroup
	wg.Go(func() {
		for s := range signals {
			forward(c, s.(unix.Signal))
		}
	})
	return func() {
		signal.Stop(signals)
		close(signals)
		wg.Wait()
		end()
	}, nil
}

// forward sends a signal to the container, which may have exited.
func forward(c *client.Started, s unix.Signal) {
	if s != unix.SIGWINCH {
		_ = unix.PidfdSendSignal(int(c.PidFD.Fd()), s, nil, 0)
	} else if c.Terminal != nil {
		resize(c.Terminal)
	}
}

// connectTerminal copies between a container's terminal and this command's
// streams. The copy of the input ends with the process: nothing can interrupt
// a read from a terminal.
func connectTerminal(master *os.File) (end func(), err error) {
	restore := func() {}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		old, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return nil, fmt.Errorf("make terminal raw: %w", err)
		}
		restore = func() { _ = term.Restore(int(os.Stdin.Fd()), old) }
	}
	resize(master)
	go io.Copy(master, os.Stdin)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(os.Stdout, master) }) // fails with EIO when the slave is closed
	return func() { wg.Wait(); restore() }, nil
}

// resize gives a container's terminal the size of this command's, if it has one.
func resize(master *os.File) {
	size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, size)
	}
}
