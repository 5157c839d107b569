package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// accessLog is what a registry writes about each request it has answered.
type accessLog struct {
	path string
	at   int64 // up to where it was read
}

// skip passes over what was answered so far.
func (l *accessLog) skip() {
	l.settle()
	if info, err := os.Stat(l.path); err == nil {
		l.at = info.Size()
	}
}

// settle waits until the log grows no more: a line is written a little after
// its answer has arrived.
func (l *accessLog) settle() {
	for last := int64(-1); ; time.Sleep(30 * time.Millisecond) {
		info, err := os.Stat(l.path)
		if err != nil || info.Size() == last {
			return
		}
		last = info.Size()
	}
}

// read adds up the bytes of the answers since then.
func (l *accessLog) read() (sum int64, err error) {
	l.settle()
	f, err := os.Open(l.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()

	text, err := io.ReadAll(io.NewSectionReader(f, l.at, 1<<30))
	if err != nil {
		return 0, err
	}

	l.at += int64(len(text))
	for line := range strings.Lines(string(text)) {
		size, ok, err := answered(line)
		if err != nil {
			return 0, err
		}
		if ok {
			sum += size
		}
	}

	return sum, nil
}

// answered is the size of an answer, in a line of Apache's combined format.
// Other lines, of which ok is false, are the registry's own.
func answered(line string) (size int64, ok bool, err error) {
	_, rest, found := strings.Cut(line, `] "GET `)
	if !found {
		return 0, false, nil // HEAD has no body
	}
	_, rest, _ = strings.Cut(rest, `" `)
	f := strings.Fields(rest)
	if len(f) < 2 {
		return 0, false, fmt.Errorf("read the registry's log: %.80q", line)
	}
	size, err = strconv.ParseInt(f[1], 10, 64)
	return size, true, err
}
