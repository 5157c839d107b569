package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLastTime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"(00.000012) Version: 4.2.1\n(00.088314) Dumping finished successfully\n": 88314 * time.Microsecond,
		"(00.000000) a\n(01.500000) b\nno time\n(x) none\n(00.400000) late\n":     1500 * time.Millisecond,
		"": 0, "nothing\n": 0,
	} {
		path := filepath.Join(t.TempDir(), "dump.log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}

		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got, err := lastTime(f); got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}

// TestWithLog reads a log that is renamed and removed while it is written.
func TestWithLog(t *testing.T) {
	dir := t.TempDir()
	whole, own, err := withLog(filepath.Join(dir, "*", "dump.log"), func() error {
		if err := os.Mkdir(filepath.Join(dir, "a"), 0o700); err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(dir, "a", "dump.log"))
		if err != nil {
			return err
		}
		defer f.Close()
		time.Sleep(100 * time.Millisecond) // until it is found
		if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
			return err
		}
		_, err = f.WriteString("(00.042000) done\n")
		return err
	})

	if err != nil || own != 42*time.Millisecond || whole < 100*time.Millisecond {
		t.Errorf("%v, %v, %v", whole, own, err)
	}
	if _, _, err := withLog(filepath.Join(dir, "none"), func() error { return nil }); err == nil {
		t.Error("no log, and no error")
	}
	if _, _, err := withLog(filepath.Join(dir, "none"), func() error { return os.ErrPermission }); err != os.ErrPermission {
		t.Errorf("error %v", err)
	}
}

func TestCheckpointSections(t *testing.T) {
	b := &bench{}
	for round, v := range []float64{30, 10, 20} {
		b.samples.add(Sample{checkpointPhase, withRunc, round, 100, dumped, v, "ms"})
		b.samples.add(Sample{checkpointPhase, archived, round, 100, dumpAdded, v / 10, "ms"})
	}
	b.note(checkpointPhase, "what is missing")

	var w bytes.Buffer
	b.checkpointSections(&w)
	for _, want := range []string{
		"### Checkpoints of 100 MiB\n", "| runc | 20.0 (10.0 – 30.0) |  |  |  |\n", "| crisp, an archive |  | 2.00 (1.00 – 3.00) |", "- what is missing\n",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("no %q in:\n%s", want, w.String())
		}
	}
	if strings.Contains(w.String(), "500 MiB") {
		t.Errorf("what was not measured is there:\n%s", w.String())
	}
}
