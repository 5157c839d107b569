package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"crisp/test/testkit/tally"
)

// memoryForTwo is the memory of a computer that can run two machines of 4 GiB
// each next to other work.
const memoryForTwo = 12 << 30

// count is how many machines run the tests. Emulated ones keep about one CPU
// busy, as most tests are sequential: if there are resources for two, they
// share all suites.
func (m machine) count() int {
	if m.options.machines > 0 {
		return m.options.machines
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil || info.Totalram*uint64(info.Unit) < memoryForTwo {
		return 1
	}
	if m.options.only != "" || m.accelerator.scale == 1 || runtime.NumCPU() < 2 {
		return 1
	}
	return 2
}

// testAll runs the tests, in the configured number of machines and then in one
// with SELinux, and returns their counts. Each machine has its own directory
// for reports.
func (m machine) testAll(ctx context.Context, reports string) (total tally.Tally, err error) {
	if !m.options.selinux {
		total, err = m.testShared(ctx, reports)
	}
	if m.options.selinux || m.release.selinux && m.options.only == "" && !m.options.node && ctx.Err() == nil {
		t, serr := m.test(ctx, filepath.Join(reports, "selinux"), selinuxArgs, os.Stdout)
		total, err = total.Add(t), errors.Join(err, serr)
	}
	return total, err
}

func (m machine) testShared(ctx context.Context, reports string) (total tally.Tally, err error) {
	count := m.count()
	tallies, errs := make([]tally.Tally, count), make([]error, count)
	var turn sync.Mutex
	var running sync.WaitGroup
	for i := range count {
		running.Go(func() {
			name := strconv.Itoa(i + 1)
			out := &lines{to: os.Stdout, turn: &turn}
			if count > 1 {
				out.prefix = name + "| "
			}
			dir := filepath.Join(reports, name)
			kernel := fmt.Sprintf("%s systemd.setenv=CRISP_VM_PART=%s/%d", apparmorArgs, name, count)
			tallies[i], errs[i] = m.test(ctx, dir, kernel, out)
		})
	}
	running.Wait()

	for _, t := range tallies {
		total = total.Add(t)
	}
	return total, errors.Join(errs...)
}

// lines writes complete lines with a prefix; writers with the same turn do not
// interleave within a line.
type lines struct {
	to     io.Writer
	turn   *sync.Mutex
	prefix string
	begun  []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.begun = append(l.begun, p...)
	end := bytes.LastIndexByte(l.begun, '\n') + 1
	l.turn.Lock()
	defer l.turn.Unlock()
	for line := range bytes.Lines(l.begun[:end]) {
		if _, err := fmt.Fprintf(l.to, "%s%s", l.prefix, line); err != nil {
			return 0, err
		}
	}
	l.begun = append(l.begun[:0], l.begun[end:]...)
	return len(p), nil
}
