package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"crisp/cmd/crisp/cli"
	"crisp/runtime/checkpoint"
)

// syncCommand is the internal command of the process that [syncApart] starts.
const syncCommand = "sync-stdin"

// syncApart syncs a directory's file system in a separate process. A process
// that waits for a disk cannot be killed; the daemon would keep its locks until
// a slow disk has written everything. When ctx ends the process is left
// running.
func syncApart(ctx context.Context, dir *os.File) error {
	var stderr bytes.Buffer
	cmd := exec.Command("/proc/self/exe", syncCommand)
	cmd.Stdin, cmd.Stderr = dir, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sync process: %w", err)
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

// refillCommand is the internal command of the process that fills a pod's shared memory.
const refillCommand = "refill-stdin"

// refillStdinCommand is what that process does.
func refillStdinCommand() *cobra.Command {
	return &cobra.Command{
		Use: refillCommand, Hidden: true, Args: cli.Exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return checkpoint.ServeRefill(cmd.Context(), os.Stdin, os.Stdout)
		},
	}
}

// syncStdinCommand is what that process does.
func syncStdinCommand() *cobra.Command {
	return &cobra.Command{
		Use: syncCommand, Hidden: true, Args: cli.Exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error { return unix.Syncfs(0) },
	}
}
