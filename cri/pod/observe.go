package pod

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/cadvisor"
)

// sandboxImage is the image reported for a pod's first process, which has none:
// some dashboards omit containers without an image.
const sandboxImage = "crisp/pause"

// Observed describes to cAdvisor a container, or a pod that has a first
// process, by its full ID. It finds them as soon as they have a cgroup:
// cAdvisor only asks once, when it first sees the cgroup.
func (m *Manager) Observed(id string) (cadvisor.Container, error) {
	p, c := m.exactly(id)
	switch {
	case c != nil:
		return p.observed(c)
	case p != nil && p.hasPause():
		return observedPod(p.record())
	}
	return cadvisor.Container{}, fmt.Errorf("container %s: %w", id, ErrNotFound)
}

// exactly finds a pod, or a container with its pod, by its full ID. Either may
// still be in creation. Both are nil if there is neither.
func (m *Manager) exactly(id string) (*pod, *Container) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p := m.pods[id]; p != nil {
		return p, nil
	}

	if p := m.containers[id]; p != nil {
		return p, p.record().Container(id)
	}

	// One that is being created is not in the index yet.
	for _, p := range m.pods {
		if c := p.record().Container(id); c != nil {
			return p, c
		}
	}

	return nil, nil
}

func observedPod(r *Record) (cadvisor.Container, error) {
	text, err := observedSpec(&specs.Process{Cwd: "/"})
	out := cadvisor.Container{
		ID: r.ID, Sandbox: true, Labels: r.Config.Msg.GetLabels(), Image: sandboxImage, CreatedAt: r.CreatedAt, Spec: text,
	}
	if r.Pause != nil {
		out.Pid = r.Pause.Pid
	}
	return out, err
}

func (p *pod) observed(c *Container) (cadvisor.Container, error) {
	made, err := p.loadSpec(c.ID)
	if err != nil {
		return cadvisor.Container{}, err
	}

	text, err := observedSpec(made.Process)
	out := cadvisor.Container{
		ID: c.ID, Labels: c.Config.Msg.GetLabels(), Image: c.ImageRef, CreatedAt: c.CreatedAt, Spec: text,
		Exited: c.State() == runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: c.ExitCode,
	}

	if c.Process != nil && c.StartedAt != 0 {
		out.Pid = c.Process.Pid
	}
	return out, err
}

// observedSpec is the part of a specification that cAdvisor reads: environment
// variables, if it is configured to report some.
func observedSpec(process *specs.Process) ([]byte, error) {
	return json.Marshal(specs.Spec{Version: specs.Version, Process: process})
}
