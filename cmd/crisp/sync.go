package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// syncCommand is the command of the process that [syncApart] starts. It is
// not for people.
const syncCommand = "sync-stdin"

// syncApart has a process of its own bring a directory's file system to the disk.
// Nothing can end who waits for a disk; the daemon would be there, with its
// locks, until a slow one has all that anybody has written. When ctx ends the
// process is left to itself.
func syncApart(ctx context.Context, dir *os.File) error {
	var stderr bytes.Buffer
	cmd := exec.Command("/proc/self/exe", syncCommand)
	cmd.Stdin, cmd.Stderr = dir, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start process that syncs: %w", err)
	}

	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// syncStdin is what that process does.
func syncStdin() error { return unix.Syncfs(0) }
