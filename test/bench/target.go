package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
)

// target is a runtime that is measured.
type target struct {
	name     string
	version  string
	runtime  runtimeapi.RuntimeServiceClient
	images   runtimeapi.ImageServiceClient
	daemon   daemon   // nil for a runtime that ran before
	programs []string // that run for pods and are not the pods' own
}

// daemon is a runtime's, which can be restarted while pods run.
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

// memory is the proportional set size, in KiB, of the runtime's processes.
func (t *target) memory() (map[string]int, error) {
	pss := map[string]int{}
	for _, p := range inventory.Descendants(os.Getpid()) {
		if !slices.Contains(t.programs, p.Name) {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID))
		if err != nil {
			return nil, fmt.Errorf("memory of %s: %w", p.Name, err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) != 3 || f[0] != "Pss:" {
				continue
			}
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				return nil, fmt.Errorf("memory of %s: %w", p.Name, err)
			}
			pss[p.Name] += kib
		}
	}
	return pss, nil
}
