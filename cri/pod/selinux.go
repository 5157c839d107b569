package pod

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/cri/spec/selinux"
)

// takeLevel returns the SELinux level of a new pod, the requested one or a new
// one, and holds it until the pod is removed. A requested label must be valid
// under the policy.
func (m *Manager) takeLevel(cfg *runtimeapi.PodSandboxConfig) (string, error) {
	if m.SELinux == nil {
		return "", nil
	}
	o := cfg.GetLinux().GetSecurityContext().GetSelinuxOptions()
	level := o.GetLevel()
	if level == "" {
		level = m.levels.Take()
	}

	labels, err := m.SELinux.Labels(o, level, selinux.Pod)
	if err != nil {
		if o.GetLevel() == "" {
			m.levels.Drop(level)
		}
		return "", labelError(err)
	}

	if o.GetLevel() != "" {
		level = selinux.Level(labels.Mount)
		m.levels.Hold(level)
	}
	return level, nil
}

// labels are those of the pod's first process and of the files that its
// containers share.
func (p *pod) labels() (spec.Labels, error) {
	sc := p.record().Config.Msg.GetLinux().GetSecurityContext()
	return p.labelsOf(sc.GetSelinuxOptions(), p.reach(false))
}

func (p *pod) containerLabels(cfg *runtimeapi.ContainerConfig) (spec.Labels, error) {
	own := cfg.GetLinux().GetSecurityContext()
	o := own.GetSelinuxOptions()
	if proto.Size(o) == 0 {
		o = p.record().Config.Msg.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	return p.labelsOf(o, p.reach(own.GetPrivileged()))
}

// reach returns what SELinux must allow a container.
func (p *pod) reach(privileged bool) selinux.Reach {
	cfg := p.record().Config.Msg
	switch {
	case privileged:
		return selinux.Everything
	case spec.NamespaceMode(cfg, spec.PID) == runtimeapi.NamespaceMode_NODE, spec.NamespaceMode(cfg, spec.IPC) == runtimeapi.NamespaceMode_NODE:
		return selinux.Node
	}
	return selinux.Pod
}

func (p *pod) labelsOf(o *runtimeapi.SELinuxOption, reach selinux.Reach) (spec.Labels, error) {
	// A pod from before SELinux was enabled stays without.
	if p.m.SELinux == nil || p.record().SELinuxLevel == "" {
		return spec.Labels{}, nil
	}
	labels, err := p.m.SELinux.Labels(o, p.record().SELinuxLevel, reach)
	return labels, labelError(err)
}

// labelError makes an invalid label the caller's error, but not a failure to
// ask the kernel.
func labelError(err error) error {
	if errors.Is(err, selinux.ErrLabel) || errors.Is(err, selinux.ErrNotRelabelled) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

// shareFiles lets a container of another level than its pod read the files
// that the pod's containers share.
func (p *pod) shareFiles(labels spec.Labels) error {
	if labels.Mount == "" || selinux.Level(labels.Mount) == p.record().SELinuxLevel {
		return nil
	}
	for _, name := range spec.SharedFileNames() {
		if err := selinux.LabelFile(p.sharedFile(name), p.m.SELinux.Shared()); err != nil {
			return err
		}
	}
	return nil
}
