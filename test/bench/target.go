package main

import (
	"context"
	"fmt"

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
}

// daemon is a runtime's daemon, which can be restarted while pods run.
type daemon interface {
	Start(ctx context.Context) error
	Stop() error
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
