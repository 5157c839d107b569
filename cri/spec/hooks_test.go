package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/hook"
)

// addHook defines a hook for every container.
func addHook(in *Input, h hook.Hook) {
	in.Hooks = func(s *specs.Spec, sources hook.Sources, _ map[string]string) (hook.Sources, error) {
		return hook.Add(s, sources, h), nil
	}
}

// TestHooks adds a hook of the node: it has its source, and is told who the
// container is.
func TestHooks(t *testing.T) {
	in := testInput()
	in.SandboxID = "pod1"
	addHook(&in, hook.Hook{Kind: hook.Poststart, Hook: specs.Hook{Path: "/bin/true"}, Source: "file x.json"})
	got, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}

	list := hook.List(got.Spec.Hooks, got.HookSources)
	if len(list) != 1 || list[0].String() != "poststart hook /bin/true (file x.json)" {
		t.Errorf("hooks %v", list)
	}
	for key, want := range map[string]string{
		"io.kubernetes.cri.sandbox-id": "pod1", "io.kubernetes.cri.sandbox-namespace": in.Sandbox.GetMetadata().GetNamespace(),
		"io.kubernetes.cri.container-name": in.Config.GetMetadata().GetName(),
	} {
		if got.Spec.Annotations[key] != want {
			t.Errorf("annotation %s is %q, want %q", key, got.Spec.Annotations[key], want)
		}
	}
}

// TestWithoutHooks leaves no trace in a spec without hooks.
func TestWithoutHooks(t *testing.T) {
	in := testInput()
	in.Hooks = func(_ *specs.Spec, sources hook.Sources, _ map[string]string) (hook.Sources, error) {
		return sources, nil
	}
	got, err := Container(in)
	if err != nil || got.Spec.Hooks != nil || len(got.Spec.Annotations) > 0 {
		t.Errorf("hooks %v, annotations %v, %v", got.Spec.Hooks, got.Spec.Annotations, err)
	}
}

func TestBadHooks(t *testing.T) {
	for name, path := range map[string]string{"relative": "bin/true", "missing": "/no/such/hook", "directory": "/bin"} {
		in := testInput()
		addHook(&in, hook.Hook{Kind: hook.CreateContainer, Hook: specs.Hook{Path: path}, Source: "file x.json"})
		if _, err := Container(in); !errors.Is(err, hook.ErrInvalid) || !strings.Contains(err.Error(), "file x.json") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
