package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// chunk is how much a container writes at a time, in whole lines, in bytes.
const chunk = 1 << 20

// lineLengths are the lengths of the logged lines, with the newline, in bytes.
var lineLengths = [...]int{64, 8192}

// logs measures the throughput of a container's log, and the CPU that it costs the
// runtime.
func (b *bench) logs(ctx context.Context, t *target, round int) error {
	for _, length := range lineLengths {
		if err := b.logLines(ctx, t, round, length); err != nil {
			return fmt.Errorf("lines of %d bytes: %w", length, err)
		}
	}
	return nil
}

// logScript prepares the output, waits for a signal to start, and writes it.
const logScript = `trap 'exit 0' TERM
yes %s | head -c %d >/tmp/chunk
touch /ready
while [ ! -e /go ]; do sleep 0.01; done
i=0; while [ $i -lt %d ]; do cat /tmp/chunk; i=$((i+1)); done
sleep 100000 & wait`

func (b *bench) logLines(ctx context.Context, t *target, round, length int) (err error) {
	dir, err := os.MkdirTemp(b.dir, "logs-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	c := b.client(t, func(string, time.Duration) {})
	c.shape = func(p *runtimeapi.PodSandboxConfig, container *runtimeapi.ContainerConfig) {
		p.LogDirectory, container.LogPath = dir, "log"
		container.Command[2] = fmt.Sprintf(logScript, strings.Repeat("x", length-1), chunk, b.opt.logged)
	}

	p, err := c.start(ctx, b.name())
	defer func() { err = errors.Join(err, c.removePod(context.WithoutCancel(ctx), p)) }()
	if err != nil {
		return err
	}

	if err := c.awaitTrap(ctx, p); err != nil {
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}

	began := time.Now()
	if err := c.execute(ctx, p, "touch", "/go"); err != nil {
		return err
	}

	log, size := filepath.Join(dir, "log"), int64(b.opt.logged)*chunk
	ended, err := waitForLog(ctx, log, size)
	if err != nil {
		return err
	}

	after, err := t.cpu()
	if err != nil {
		return err
	}

	lines, err := countLines(log)
	if want := int(size) / length; err == nil && lines != want {
		err = fmt.Errorf("the log has %d lines, want %d", lines, want)
	}
	if err != nil {
		return err
	}

	add := func(name string, value float64, unit string) {
		b.samples.add(Sample{"logs", t.name, round, length, name, value, unit})
	}
	seconds := ended.Sub(began).Seconds()
	add("throughput", float64(size)/1e6/seconds, "MB/s")
	add("lines", float64(lines)/seconds, "lines/s")

	if len(t.programs) > 0 {
		add("CPU of the runtime", milliseconds(after-before)/(float64(size)/1e6), "ms per MB")
	}
	return nil
}

// waitForLog waits until a log has at least size bytes and stops growing. It
// returns the time of its last growth.
func waitForLog(ctx context.Context, path string, size int64) (grew time.Time, err error) {
	const calm, patience = 300 * time.Millisecond, time.Minute
	last := int64(-1)
	for ctx.Err() == nil {
		info, err := os.Stat(path)
		if err != nil {
			return grew, err
		}

		if now := info.Size(); now != last {
			last, grew = now, time.Now()
		}
		switch still := time.Since(grew); {
		case last >= size && still > calm:
			return grew, nil
		case still > patience:
			return grew, fmt.Errorf("the log has %d bytes of more than %d, and has not grown for %v", last, size, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}

	return grew, ctx.Err()
}

func countLines(path string) (n int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()

	buffer := make([]byte, 1<<20)
	for {
		got, err := f.Read(buffer)
		n += bytes.Count(buffer[:got], []byte{'\n'})
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
