package spec

import (
	"maps"

	"crisp/runtime/hook"
)

// hooks adds the node's own hooks, and checks all that the container has. Only
// a container with hooks has annotations in its spec: what its hooks are told
// about it.
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

	b.out.Spec.Annotations = b.annotations()
	return nil
}

// annotations are those of the pod and the container, and what identifies both,
// under the keys that hooks know. They are data: none has an effect.
func (b *builder) annotations() map[string]string {
	all := map[string]string{}
	maps.Copy(all, b.Sandbox.GetAnnotations())
	maps.Copy(all, b.Config.GetAnnotations())
	for key, value := range map[string]string{
		"container-type": "container", "container-name": b.Config.GetMetadata().GetName(), "image-name": b.Config.GetImage().GetImage(),
		"sandbox-id": b.SandboxID, "sandbox-name": b.Sandbox.GetMetadata().GetName(),
		"sandbox-namespace": b.Sandbox.GetMetadata().GetNamespace(), "sandbox-uid": b.Sandbox.GetMetadata().GetUid(),
	} {
		all["io.kubernetes.cri."+key] = value
	}
	return all
}
