package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// target is a runtime that is measured.
type target struct {
	name     string
	version  string
	endpoint string // unix://…
	runtime  runtimeapi.RuntimeServiceClient
	images   runtimeapi.ImageServiceClient
	daemon   daemon   // nil for a runtime that was running before
	programs []string // the runtime's own programs
	dir      string   // named by the arguments of its processes; any if empty
}

// daemon is a runtime's daemon, which can be restarted while pods run.
type daemon interface {
	Start(ctx context.Context) error
	Stop() error
}

// memory measures a target's memory like [target.memory], while no other one has
// a daemon that shares the pages of its programs.
func (b *bench) memory(ctx context.Context, t *target) (pss map[string]int, err error) {
	for _, other := range b.targets {
		if other == t || other.daemon == nil || !slices.Equal(other.programs, t.programs) {
			continue
		}
		if err := other.daemon.Stop(); err != nil {
			return nil, fmt.Errorf("stop %s while %s is weighed: %w", other.name, t.name, err)
		}
		defer func() { err = errors.Join(err, other.daemon.Start(context.WithoutCancel(ctx))) }()
	}
	return t.memory()
}

// describe asks for the version.
func (t *target) describe(ctx context.Context) error {
	v, err := t.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fmt.Errorf("%s: version: %w", t.name, err)
	}
	t.version = v.RuntimeName + " " + v.RuntimeVersion
	return nil
}
