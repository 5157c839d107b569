package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// runcSaver saves a program with runc, as a bundle of its own.
type runcSaver struct {
	runc, criu string // programs
	program    string
	dir        string // for the bundle and what is saved of it
	cgroup     string

	ran bool
}

func (s *runcSaver) name() string { return withRunc }

func (s *runcSaver) path(name string) string { return filepath.Join(s.dir, name) }

// call runs runc, which finds CRIU by its name. Neither waits for what they start, which has
// none of their output.
func (s *runcSaver) call(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.runc, append([]string{"--root", s.path("state")}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(s.criu)+":"+os.Getenv("PATH"))
	log, err := os.Create(s.path("stderr"))
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()

	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	if args[0] != "run" && args[0] != "restore" {
		cmd.Stderr = log
	}
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name()) // for the message
		return fmt.Errorf("runc %s: %w: %s", args[0], err, bytes.TrimSpace(text))
	}
	return nil
}

func (s *runcSaver) run(ctx context.Context, size int, find string) error {
	b := bundle{program: s.program, args: []string{strconv.Itoa(size), find}, cgroup: s.cgroup, onNodeNetwork: true, writable: true}
	if err := b.write(s.path("bundle")); err != nil {
		return err
	}
	s.ran = true
	return s.call(ctx, "run", "--detach", "--bundle", s.path("bundle"), "held")
}

func (s *runcSaver) save(ctx context.Context) error {
	return s.call(ctx, "checkpoint", "--leave-running", "--image-path", s.path("images"), "--work-path", s.path("work"), "held")
}

func (s *runcSaver) end(ctx context.Context) error {
	s.ran = false
	return s.call(ctx, "delete", "--force", "held")
}

func (s *runcSaver) prepare(context.Context) error { return nil }

func (s *runcSaver) restore(ctx context.Context) error {
	s.ran = true
	err := s.call(ctx, "restore", "--detach", "--image-path", s.path("images"), "--work-path", s.path("work"), "--bundle", s.path("bundle"), "held")
	if err != nil {
		log, _ := os.ReadFile(s.path("work/restore.log")) // for the message
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "Error (") {
				err = fmt.Errorf("%w: %s", err, strings.TrimSpace(line))
			}
		}
	}
	return err
}

func (s *runcSaver) logs() (save, restore string) {
	return s.path("work/dump.log"), s.path("work/restore.log")
}

func (s *runcSaver) drop(ctx context.Context) (err error) {
	if s.ran {
		err = s.end(ctx)
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
