package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestNames(t *testing.T) {
	cfg := &runtimeapi.ContainerConfig{
		CDIDevices: []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=1"}, {Name: "vendor.com/gpu=0"}},
		Annotations: map[string]string{
			"cdi.k8s.io/plugin_b": "vendor.com/gpu=2,vendor.com/gpu=1", "cdi.k8s.io/plugin_a": "vendor.com/nic=x", "other": "y",
		},
	}

	got, err := Names(cfg)
	want := []string{"vendor.com/gpu=1", "vendor.com/gpu=0", "vendor.com/nic=x", "vendor.com/gpu=2"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Names() = %q, %v, want %q", got, err, want)
	}

	for _, bad := range []*runtimeapi.ContainerConfig{
		{CDIDevices: []*runtimeapi.CDIDevice{{Name: "gpu0"}}},
		{Annotations: map[string]string{"cdi.k8s.io/a": "vendor.com/gpu"}},
		{Annotations: map[string]string{"cdi.k8s.io/a": ""}},
	} {
		if got, err := Names(bad); !errors.Is(err, ErrUnknown) {
			t.Errorf("Names(%v) = %q, %v, want ErrUnknown", bad, got, err)
		}
	}
}

const description = `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "containerEdits": {"env": ["ALL=1"]}, "devices": [
 {"name": "0", "containerEdits": {"env": ["GPU=0"], "deviceNodes": [{"path": "/dev/null"}],
  "mounts": [{"hostPath": "/lib/gpu", "containerPath": "/gpu", "options": ["ro", "rbind"]}]}},
 {"name": "hook", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}}]}`

func directory(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func emptySpec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: []string{"A=b"}}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func TestInject(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "none"), directory(t, map[string]string{"vendor.json": description})}
	s := emptySpec()
	if err := Inject(dirs, s, []string{"vendor.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}

	if want := []string{"A=b", "ALL=1", "GPU=0"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %q, want %q", s.Process.Env, want)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Major != 1 || len(s.Linux.Resources.Devices) != 1 {
		t.Errorf("devices %+v, rules %+v", s.Linux.Devices, s.Linux.Resources.Devices)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Destination != "/gpu" {
		t.Errorf("mounts %+v", s.Mounts)
	}
}

func TestInjectNothing(t *testing.T) {
	s := emptySpec()
	if err := Inject(nil, s, nil); err != nil || len(s.Process.Env) != 1 {
		t.Errorf("Inject() of nothing = %v, %+v", err, s.Process)
	}
}

func TestInjectRefuses(t *testing.T) {
	dir := directory(t, map[string]string{"vendor.json": description, "broken.json": "{"})
	s := emptySpec()
	err := Inject([]string{dir}, s, []string{"vendor.com/gpu=0", "vendor.com/gpu=7"})
	if !errors.Is(err, ErrUnknown) || len(s.Process.Env) != 1 || len(s.Linux.Devices) != 0 {
		t.Errorf("Inject() = %v, spec %+v", err, s)
	}

	for _, want := range []string{`"vendor.com/gpu=7"`, dir, `"vendor.com/gpu=0"`, "broken.json"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %s", err, want)
		}
	}

	if err := Inject([]string{dir}, emptySpec(), []string{"vendor.com/gpu=hook"}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Inject() with a hook = %v, want ErrUnsupported", err)
	}
}
