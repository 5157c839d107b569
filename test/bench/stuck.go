package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"crisp/test/testkit/lab"
)

// stuckPlugin makes a pod hang in CNI ADD. The runtimes search its directory for
// plugins first; it is empty, and costs nothing, except while a pod is made to
// hang.
type stuckPlugin struct {
	dir, real string
}

// stuckName is the plugin that is replaced by one that hangs.
const stuckName = "portmap"

func newStuckPlugin() (*stuckPlugin, error) {
	cache, err := lab.Find()
	if err != nil {
		return nil, err
	}
	plugins, err := cache.Plugins()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "crisp-bench-plugin-")
	return &stuckPlugin{dir: dir, real: filepath.Join(plugins, stuckName)}, err
}

func (s *stuckPlugin) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stuckPlugin) close() error { return os.RemoveAll(s.dir) }

// hold makes the next pod hang.
func (s *stuckPlugin) hold() error {
	script := fmt.Sprintf(`#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
	: >%[1]s/held
	while [ -d %[1]s ] && [ ! -e %[1]s/go ]; do sleep 0.02; done
fi
exec %[2]s
`, s.dir, s.real)
	fresh := s.path("new")
	return errors.Join(os.WriteFile(fresh, []byte(script), 0o755), os.Rename(fresh, s.path(stuckName)))
}

// waitUntilHeld waits until a pod hangs; later pods do not hang.
func (s *stuckPlugin) waitUntilHeld(ctx context.Context, started <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for {
		if _, err := os.Stat(s.path("held")); err == nil {
			return os.Remove(s.path(stuckName))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a pod to hang: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}

		if len(started) > 0 {
			return errors.New("a pod did not hang in its network plugin")
		}
	}
}

// release lets the pod continue.
func (s *stuckPlugin) release() error { return os.WriteFile(s.path("go"), nil, 0o644) }

// clear empties the directory, once no pod hangs any more.
func (s *stuckPlugin) clear() error {
	var errs []error
	for _, name := range []string{"go", "held", stuckName} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
