package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// accessLog is a registry's log of requests.
type accessLog struct {
	path string
	at   int64 // offset up to which it was read
}

// skip skips the requests so far.
func (l *accessLog) skip() {
	l.flush()
	if info, err := os.Stat(l.path); err == nil {
		l.at = info.Size()
	}
}

// flush waits until the log stops growing: a line is written shortly after its
// response was sent.
func (l *accessLog) flush() {
	for last := int64(-1); ; time.Sleep(30 * time.Millisecond) {
		info, err := os.Stat(l.path)
		if err != nil || info.Size() == last {
			return
		}
		last = info.Size()
	}
}

// read returns the total size of responses since the last skip or read, in bytes.
func (l *accessLog) read() (sum int64, err error) {
	l.flush()
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

// answered returns the size of a response from a line in Apache's combined format.
// ok is false for other lines.
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
