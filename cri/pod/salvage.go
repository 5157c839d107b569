package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
	"crisp/runtime/keeper/client"
)

// salvage creates a record for a pod whose own cannot be read, from everything
// else that describes the pod: enough to list it and to remove its resources.
func (m *Manager) salvage(l loaded, e *client.Entry) *Record {
	klog.ErrorS(l.err, "Set aside a damaged pod record", "sandbox", l.id)
	config := message(&runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "damaged-" + l.id[:min(12, len(l.id))], Namespace: "unknown", Uid: l.id},
	})

	r := &Record{
		Version: recordVersion, BootID: m.bootID, ID: l.id, Config: config, CreatedAt: time.Now().UnixNano(),
		Phase: phaseStopping, Reason: "its record is damaged: " + l.err.Error(),
		NetNS: m.netNSPath(l.id),
	}

	if e != nil && e.Pid != 0 && e.Exit == nil {
		if pause, err := identify(e.Pid); err == nil { // it has not just exited
			r.Pause = pause
		}
	}

	entries, err := os.ReadDir(m.store.podDir(l.id))
	warn(err, "find the containers of a damaged pod", "sandbox", l.id)
	for _, f := range entries {
		// One that was being removed may only have its directory; it no longer
		// runs.
		if id, ok := strings.CutSuffix(f.Name(), specSuffix); ok {
			r.Containers = append(r.Containers, m.salvageContainer(filepath.Join(m.store.podDir(l.id), f.Name()), id))
		}
	}

	return r
}

// salvageContainer describes a container by its spec. It is not listed.
func (m *Manager) salvageContainer(path, id string) *Container {
	c := &Container{ID: id, Phase: containerSteps[len(containerSteps)-1].name}
	data, err := os.ReadFile(path)
	if err == nil {
		if s, err := spec.Decode(data); err == nil && s.Linux != nil {
			c.CgroupPath = s.Linux.CgroupsPath
		}
	}
	if c.CgroupPath == "" {
		c.CgroupPath, err = m.Cgroups.Path("", c.ID)
		warn(err, "determine the cgroup of a damaged container", "container", c.ID)
	}
	return c
}

// setAside keeps a damaged record for inspection and kills the processes of its
// pod. The containers are removed from the index, as requests can no longer
// refer to them.
func (p *pod) setAside(ctx context.Context) error {
	r := p.record()
	var errs []error
	for _, c := range r.Containers {
		p.m.unindex(c.ID)
		group, err := p.m.Cgroups.Open(c.CgroupPath)
		if err == nil {
			err = group.Kill(ctx)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("kill container %s: %w", c.ID, err))
		}
	}

	path := p.m.store.recordPath(r.ID)
	if err := os.Rename(path, path+".damaged"); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
