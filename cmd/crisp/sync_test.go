package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain plays the process that syncs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == syncCommand {
		if directory, err := os.Readlink("/proc/self/fd/0"); err == nil && strings.HasSuffix(directory, "slow") {
			time.Sleep(time.Second)
		}
		if err := syncStdinCommand().RunE(nil, nil); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestSyncApart(t *testing.T) {
	slow := filepath.Join(t.TempDir(), "slow")
	if err := os.Mkdir(slow, 0o700); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		path  string
		mode  int
		limit time.Duration
		want  string
	}{
		{t.TempDir(), os.O_RDONLY, time.Minute, ""},
		{t.TempDir(), unix.O_PATH, time.Minute, "bad file descriptor"},
		{slow, os.O_RDONLY, 50 * time.Millisecond, context.DeadlineExceeded.Error()},
	} {
		f, err := os.OpenFile(c.path, c.mode, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		ctx, cancel := context.WithTimeout(t.Context(), c.limit)
		defer cancel()
		if err := syncApart(ctx, f); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}
