package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWaitForLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("line\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}

	began, grown := time.Now(), make(chan error, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("line\n")
			err = errors.Join(err, f.Close())
		}
		grown <- err
	}()

	at, err := waitForLog(t.Context(), path, 505)
	if err := errors.Join(err, <-grown); err != nil {
		t.Fatal(err)
	}

	if took := at.Sub(began); took < 50*time.Millisecond || time.Since(at) < 300*time.Millisecond {
		t.Errorf("the log grew last after %v, at the wrong time", took)
	}
	if n, err := countLines(path); err != nil || n != 101 {
		t.Errorf("counted %d lines, %v", n, err)
	}
}
