package spec

import (
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/hook"
	"crisp/runtime/seccomp"
)

// hooks adds the node's own hooks, and checks all that the container has.
func (b *builder) hooks() error {
	if b.Hooks != nil {
		var err error
		if b.out.HookSources, err = b.Hooks(b.out.Spec, b.out.HookSources, b.annotations()); err != nil {
			return err
		}
	}

	list := hook.List(b.out.Spec.Hooks, b.out.HookSources)
	if len(list) == 0 {
		b.out.Spec.Hooks = nil
		b.Annotate(b.out.Spec)
		return nil
	}
	for _, h := range list {
		warning, err := h.Check()
		if err != nil {
			return err
		}
		if warning != "" {
			b.out.HookWarnings = append(b.out.HookWarnings, warning)
		}
	}

	b.Annotate(b.out.Spec)
	return nil
}

// Annotate adds annotations to a spec that has hooks, or an agent of its seccomp
// filter: what these are told about the container. Others have none. Those that are
// there, which plugins have set, stay.
func (in *Input) Annotate(s *specs.Spec) {
	if s.Hooks == nil && !seccomp.Listens(s.Linux.Seccomp) {
		return
	}
	all := in.annotations()
	maps.Copy(all, s.Annotations)
	s.Annotations = all
}

// annotations are those of the pod and the container, and what identifies both,
// under the keys that hooks know. They are data: none has an effect.
func (in *Input) annotations() map[string]string {
	all := map[string]string{}
	maps.Copy(all, in.Sandbox.GetAnnotations())
	maps.Copy(all, in.Config.GetAnnotations())
	for key, value := range map[string]string{
		"container-type": "container", "container-name": in.Config.GetMetadata().GetName(), "image-name": in.Config.GetImage().GetImage(),
		"sandbox-id": in.SandboxID, "sandbox-name": in.Sandbox.GetMetadata().GetName(),
		"sandbox-namespace": in.Sandbox.GetMetadata().GetNamespace(), "sandbox-uid": in.Sandbox.GetMetadata().GetUid(),
	} {
		all["io.kubernetes.cri."+key] = value
	}
	return all
}
