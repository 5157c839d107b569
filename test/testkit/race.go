package testkit

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Rounds is how often a race is run: CRISP_ROUNDS, or 100 times.
func Rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("CRISP_ROUNDS")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("CRISP_ROUNDS: %v", err)
	}
	return n
}

// Exchange swaps two names of a directory repeatedly until the test ends.
func Exchange(t *testing.T, dir, a, b string) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, a), unix.AT_FDCWD, filepath.Join(dir, b), unix.RENAME_EXCHANGE)
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
}
