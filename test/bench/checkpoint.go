package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"crisp/test/testkit/lab"
)

const (
	checkpointPhase = "checkpoint"
	// Names of its samples: how long the calls took, and what of it was not CRIU's time.
	dumped, dumpAdded     = "dump", "dump, beyond CRIU"
	restored, restoreMore = "restore", "restore, beyond CRIU"
	// prepared is what a restore does before it has the processes made. It is a part of it.
	prepared = "restore, until it can be started"
	// archived is what the daemon's archives take, of a container or a pod.
	archived, archivedPod, snapshotted = "crisp, an archive", "crisp, a pod's archives", "crisp, a snapshot"
	withRunc                           = "runc"
)

// heldSizes are how much memory is saved and restored, in MiB.
var heldSizes = [...]int{10, 100, 500}

// saver saves a program that holds memory, which runs on, and restores another.
type saver interface {
	name() string
	// run has a new program hold memory, in MiB, and returns once it does. find tells its
	// process from others.
	run(ctx context.Context, size int, find string) error
	// save saves it. logs matches CRIU's log meanwhile.
	save(ctx context.Context) error
	// end ends the program.
	end(ctx context.Context) error
	// prepare and restore make it again of what was saved.
	prepare(ctx context.Context) error
	restore(ctx context.Context) error
	// logs are patterns of the log of CRIU during save, and during restore.
	logs() (save, restore string)
	// drop removes everything.
	drop(ctx context.Context) error
}

// criuConfig is the daemon's configuration of CRIU, empty if there is none.
func criuConfig() (string, error) {
	cache, err := lab.Find()
	if err != nil {
		return "", err
	}
	criu, err := cache.CRIU()
	if errors.Is(err, lab.ErrNotMade) {
		return "", nil
	}
	return fmt.Sprintf("criu_path = %q\n", criu), err
}

// checkpoints measures how long the state of a program takes to be saved and restored, by
// the daemon's ways and by runc, with the same CRIU on the same disk.
func (b *bench) checkpoints(ctx context.Context, round int) error {
	cache, err := lab.Find()
	if err != nil {
		return err
	}
	criu, err := cache.CRIU()
	if errors.Is(err, lab.ErrNotMade) {
		b.note(checkpointPhase, "CRIU could not be fetched from Debian, and nothing was saved.")
		return nil
	}
	if err != nil {
		return err
	}
	program, err := cache.Tool("hold")
	if err != nil {
		return err
	}

	for _, size := range heldSizes {
		all, err := b.savers(program, criu)
		if err != nil {
			return err
		}
		if round%2 == 1 {
			slices.Reverse(all)
		}
		for _, s := range all {
			if err := b.saveAndRestore(ctx, s, size, round); err != nil {
				return fmt.Errorf("%s, %d MiB: %w", s.name(), size, err)
			}
		}
	}
	return nil
}

// savers are the ways to save a program, each of which is measured once.
func (b *bench) savers(program, criu string) ([]saver, error) {
	dir, err := os.MkdirTemp(b.dir, "checkpoint-")
	if err != nil {
		return nil, err
	}
	t := b.targets[0]
	all := []saver{}
	for _, kind := range []string{archived, archivedPod, snapshotted} {
		all = append(all, &ownSaver{kind: kind, bench: b, t: t, program: program, dir: filepath.Join(dir, strconv.Itoa(len(all)))})
	}
	if b.opt.peers == "" {
		return all, nil
	}
	peers, err := filepath.Abs(b.opt.peers)
	if err != nil {
		return nil, err
	}
	return append(all, &runcSaver{runc: filepath.Join(peers, "runc"), criu: criu, program: program, dir: filepath.Join(dir, "runc"), cgroup: b.cgroupParent + "/runc"}), nil
}

// saveAndRestore measures one way once.
func (b *bench) saveAndRestore(ctx context.Context, s saver, size, round int) (err error) {
	defer func() { err = errors.Join(err, s.drop(context.WithoutCancel(ctx))) }()
	find := fmt.Sprintf("held-%d-%d-%d", os.Getpid(), b.pods, size)
	b.pods++
	if err := s.run(ctx, size, find); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if err := holds(ctx, find, size); err != nil {
		return err
	}

	add := func(name string, took time.Duration) {
		b.samples.add(Sample{checkpointPhase, s.name(), round, size, name, milliseconds(took), "ms"})
	}
	saveLog, restoreLog := s.logs()
	whole, own, err := withLog(saveLog, func() error { return s.save(ctx) })
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	add(dumped, whole)
	add(dumpAdded, whole-own)
	if err := s.end(ctx); err != nil {
		return fmt.Errorf("end: %w", err)
	}

	began := time.Now()
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	before := time.Since(began)
	whole, own, err = withLog(restoreLog, func() error { return s.restore(ctx) })
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	add(prepared, before)
	add(restored, before+whole)
	add(restoreMore, before+whole-own)
	return holds(ctx, find, size)
}

// withLog measures a call, and reads from CRIU's log how long CRIU took of it.
func withLog(pattern string, do func() error) (whole, own time.Duration, err error) {
	done, log := make(chan struct{}), make(chan *os.File)
	go func() { log <- awaitLog(pattern, done) }()
	began := time.Now()
	err = do()
	whole = time.Since(began)
	close(done)

	f := <-log
	if err != nil {
		if f != nil {
			f.Close()
		}
		return 0, 0, err
	}
	if f == nil {
		return 0, 0, fmt.Errorf("CRIU has written no log %s", pattern)
	}
	defer f.Close()
	own, err = lastTime(f)
	return whole, own, err
}

// awaitLog opens the first file of a pattern, before it is renamed or removed: nil if
// there is none until done.
func awaitLog(pattern string, done <-chan struct{}) *os.File {
	for {
		names, _ := filepath.Glob(pattern) // the pattern is well-formed
		for _, name := range names {
			if f, err := os.Open(name); err == nil {
				return f
			}
		}

		select {
		case <-done:
			return nil
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// lastTime is the time in the last line of CRIU's log that has one, since it began:
//
//	(00.088314) Dumping finished successfully
func lastTime(log *os.File) (last time.Duration, err error) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "(")
		if !ok {
			continue
		}
		text, _, ok = strings.Cut(text, ")")
		if seconds, err := strconv.ParseFloat(text, 64); ok && err == nil {
			last = max(last, time.Duration(seconds*float64(time.Second)))
		}
	}

	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read CRIU's log: %w", err)
	}
	if last == 0 {
		return 0, errors.New("CRIU's log has no times")
	}
	return last, nil
}

// holds waits until the process with an argument has as many MiB in memory.
func holds(ctx context.Context, find string, size int) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for {
		if heldBy(find) >= size {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a program to hold %d MiB: %w", size, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// heldBy is how many MiB the process with an argument has in memory, 0 if there is none.
func heldBy(find string) int {
	pids, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range pids {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !strings.HasPrefix(string(line), "/program\x00") || !strings.HasSuffix(string(line), "\x00"+find+"\x00") {
			continue
		}
		text, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), "VmRSS:")
		kib := 0
		_, _ = fmt.Sscan(rest, &kib) // 0 without it
		return kib >> 10
	}
	return 0
}

// checkpointSections prints what checkpoints took.
func (b *bench) checkpointSections(w *bytes.Buffer) {
	for _, size := range heldSizes {
		var names []string
		for _, s := range b.samples.all {
			if s.Phase == checkpointPhase && s.Load == size && !slices.Contains(names, s.Runtime) {
				names = append(names, s.Runtime)
			}
		}
		if len(names) == 0 {
			continue
		}

		slices.Sort(names)
		fmt.Fprintf(w, "\n### Checkpoints of %d MiB\n\n", size)
		fmt.Fprintf(w, "Milliseconds: medians (min – max). What is beyond CRIU's time is the whole without what CRIU's own log says that CRIU took.\n\n")
		fmt.Fprintf(w, "| | %s | %s | %s | %s |\n|---|--:|--:|--:|--:|\n", dumped, dumpAdded, restored, restoreMore)
		for _, name := range names {
			fmt.Fprintf(w, "| %s |", name)
			for _, what := range []string{dumped, dumpAdded, restored, restoreMore} {
				v := b.samples.of(key{checkpointPhase, what, size}, name).whole()
				fmt.Fprintf(w, " %s |", spreadOf(v))
			}
			fmt.Fprintln(w)
		}
	}
	b.notesOf(w, checkpointPhase)
}

// spreadOf is the median of sorted values, with the lowest and the highest.
func spreadOf(v []float64) string {
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("%s (%s – %s)", number(quantile(v, 0.5)), number(v[0]), number(v[len(v)-1]))
}
