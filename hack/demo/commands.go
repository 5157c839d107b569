package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// commands are steps with crisp's own command line.
func (s *stage) commands() []step {
	return []step{
		{"With crisp's own command line:", func() error { return errors.Join(s.crisp("ps"), s.crisp("top", "--once")) }},
		{"Why a container does not run:", s.why},
	}
}

// crisp runs a command and prints what it says.
func (s *stage) crisp(command string, args ...string) error {
	cache, err := lab.Find()
	if err != nil {
		return err
	}
	program, err := cache.Crisp()
	if err != nil {
		return err
	}

	fmt.Printf("%s$ crisp %s\n", indent, strings.Join(append([]string{command}, args...), " "))
	all := append([]string{command, "--config", filepath.Join(s.lab.Dir, "config.toml"), "--state", filepath.Join(s.lab.Dir, "state"), "--listen", s.lab.Endpoint}, args...)
	out, err := exec.CommandContext(s.ctx, program, all...).CombinedOutput()
	say("%s", strings.TrimSpace(string(out)))
	if err != nil {
		return fmt.Errorf("crisp %s: %w", command, err)
	}
	return nil
}

// why asks about a container whose program does not exist.
func (s *stage) why() error {
	cfg := s.containerConfig()
	cfg.Metadata.Name, cfg.Command, cfg.LogPath = "typo", []string{"ngnix"}, "typo.log"
	r, err := s.lab.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod, Config: cfg, SandboxConfig: s.sandbox})
	if err != nil {
		return err
	}
	if _, err := s.lab.Runtime.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId}); err == nil {
		return errors.New("a program that does not exist was started")
	}
	if err := s.crisp("why", "demo/web/typo"); err != nil {
		return err
	}
	_, err = s.lab.Runtime.RemoveContainer(s.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: r.ContainerId})
	return err
}
