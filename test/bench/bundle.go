package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"crisp/test/testkit/lab"
)

// subject is a way to run a program, in a container or without.
type subject struct {
	name string
	run  func(ctx context.Context) error
	end  func(ctx context.Context) error // or nil
}

// bundlePhase and ranBundle name the samples of subjects.
const (
	bundlePhase = "bundle"
	ranBundle   = "start to end"
)

// bundle measures how long a container takes from the start of its command to its
// exit, for one OCI bundle whose program does nothing, and how long a process
// takes without a container. It alternates between all of them.
func (b *bench) bundle(ctx context.Context, round int) (err error) {
	dir, err := os.MkdirTemp(b.dir, "bundle-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	all, err := b.subjects(ctx, dir)
	defer func() {
		for _, s := range all {
			if s.end != nil {
				err = errors.Join(err, s.end(context.WithoutCancel(ctx)))
			}
		}
	}()

	if err != nil {
		return err
	}
	for range b.opt.starts {
		for _, s := range all {
			began := time.Now()
			if err := s.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			b.samples.add(Sample{bundlePhase, s.name, round, 0, ranBundle, milliseconds(time.Since(began)), "ms"})
		}
	}

	return nil
}

// subjects lists those that work on this machine. The notes have the reasons why
// others do not.
func (b *bench) subjects(ctx context.Context, dir string) ([]subject, error) {
	cache, err := lab.Find()
	if err != nil {
		return nil, err
	}

	crisp, err := cache.Crisp()
	if err != nil {
		return nil, err
	}

	goProgram, err := cache.Tool("nothing")
	if err != nil {
		return nil, err
	}

	path := func(name string) string { return filepath.Join(dir, name) }
	program := goProgram
	floor := []subject{command("unshare -pmniuf true", nil, "unshare", "-pmniuf", "true"), command("a Go program", nil, goProgram)}
	if out, err := compileC(ctx, path("nothing")); err != nil {
		b.note(bundlePhase, fmt.Sprintf("The C program could not be built, so the bundle contains the Go program: %v%s.", err, out))
	} else {
		program = path("nothing")
		floor = append(floor, command("a C program", nil, program))
	}
	if err := (bundle{program: program, cgroup: b.cgroupParent + "/bundle"}).write(path("bundle")); err != nil {
		return nil, err
	}

	daemons, err := newKept(ctx, path("state"), filepath.Join(filepath.Dir(crisp), "crisp-keeper"), path("bundle"))
	if err != nil {
		return nil, err
	}

	peers, err := filepath.Abs(b.opt.peers)
	if err != nil {
		return nil, err
	}

	others := []subject{
		command("runc run", nil, filepath.Join(peers, "runc"), "--root", path("runc"), "run", "--bundle", path("bundle"), "bundle"),
		command("crun run", []string{"LD_LIBRARY_PATH=" + filepath.Join(peers, "crun", "lib")},
			filepath.Join(peers, "crun", "crun"), "--root", path("crun"), "run", "--bundle", path("bundle"), "bundle"),
	}

	all := []subject{
		{"crisp, its keeper running", daemons.run, daemons.end},
		command("crisp run", nil, crisp, "run", path("bundle")),
	}

	for _, s := range append(others, floor...) {
		if err := s.run(ctx); err != nil {
			b.note(bundlePhase, fmt.Sprintf("%s does not work on this machine: %v.", s.name, err))
			continue
		}
		all = append(all, s)
	}

	return all, nil
}

// command is a subject that is a program. Its error includes what it prints.
func command(name string, env []string, args ...string) subject {
	return subject{name: name, run: func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), env...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, bytes.ReplaceAll(bytes.TrimSpace(stderr.Bytes()), []byte("\n"), []byte("; ")))
		}
		return nil
	}}
}

// compileC builds a static program that returns at once.
func compileC(ctx context.Context, to string) (out []byte, err error) {
	cmd := exec.CommandContext(ctx, "cc", "-O2", "-static", "-x", "c", "-o", to, "-")
	cmd.Stdin = bytes.NewBufferString("int main(void) { return 0; }\n")
	return cmd.CombinedOutput()
}
