package pod

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/cadvisor"
)

// sandboxImage is shown for a pod's first process, which comes from no image:
// there are dashboards that leave out what has none.
const sandboxImage = "crisp/pause"

// Observed tells cAdvisor of a container, or of a pod that has a first process,
// by its whole ID.
func (m *Manager) Observed(id string) (cadvisor.Container, error) {
	m.mu.RLock()
	p, isPod := m.pods[id]
	if !isPod {
		p = m.containers[id]
	}
	m.mu.RUnlock()
	if p == nil {
		return cadvisor.Container{}, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}

	r := p.record()
	if isPod {
		return observedPod(r)
	}
	c := r.Container(id)
	if c == nil {
		return cadvisor.Container{}, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	k := &making{p: p, id: id}
	made, err := k.loadSpec()
	if err != nil {
		return cadvisor.Container{}, err
	}
	return observedContainer(c, made.Process)
}

func observedPod(r *Record) (cadvisor.Container, error) {
	if r.Pause == nil {
		return cadvisor.Container{}, fmt.Errorf("sandbox %s has no first process: %w", r.ID, ErrNotFound)
	}
	text, err := observedSpec(&specs.Process{Cwd: "/"})
	return cadvisor.Container{
		ID: r.ID, Sandbox: true, Labels: r.Config.Msg.GetLabels(), Image: sandboxImage,
		CreatedAt: r.CreatedAt, Pid: r.Pause.Pid, Spec: text,
	}, err
}

func observedContainer(c *Container, process *specs.Process) (cadvisor.Container, error) {
	text, err := observedSpec(process)
	out := cadvisor.Container{
		ID: c.ID, Labels: c.Config.Msg.GetLabels(), Image: c.ImageRef, CreatedAt: c.CreatedAt, Spec: text,
		Exited: c.State() == runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: c.ExitCode,
	}
	if c.Process != nil && c.StartedAt != 0 {
		out.Pid = c.Process.Pid
	}
	return out, err
}

// observedSpec is all that cAdvisor reads of a specification: variables, if it
// is asked to show some.
func observedSpec(process *specs.Process) ([]byte, error) {
	return json.Marshal(specs.Spec{Version: specs.Version, Process: process})
}
