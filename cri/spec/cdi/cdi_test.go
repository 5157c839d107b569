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

	"crisp/runtime/hook"
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
	got, err := New(dirs).Inject(s, []string{"vendor.com/gpu=0"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) > 0 {
		t.Errorf("added %+v", got)
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
	if _, err := New(nil).Inject(s, nil); err != nil || len(s.Process.Env) != 1 {
		t.Errorf("Inject() of nothing = %v, %+v", err, s.Process)
	}
}

func TestInjectRefuses(t *testing.T) {
	dir := directory(t, map[string]string{"vendor.json": description, "broken.json": "{"})
	s := emptySpec()
	_, err := New([]string{dir}).Inject(s, []string{"vendor.com/gpu=0", "vendor.com/gpu=7"})
	if !errors.Is(err, ErrUnknown) || len(s.Process.Env) != 1 || len(s.Linux.Devices) != 0 {
		t.Errorf("Inject() = %v, spec %+v", err, s)
	}

	for _, want := range []string{`"vendor.com/gpu=7"`, dir, `"vendor.com/gpu=0"`, "broken.json"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %s", err, want)
		}
	}
}

// TestInjectEverything adds two devices of one spec with edits of every kind.
func TestInjectEverything(t *testing.T) {
	dir := directory(t, map[string]string{"vendor.yaml": everything})
	s := emptySpec()
	s.Process.User = specs.User{UID: 1000, GID: 1000}
	got, err := New([]string{dir}).Inject(s, []string{"vendor.com/gpu=1", "vendor.com/gpu=0"})
	if err != nil {
		t.Fatal(err)
	}

	if want := []string{"A=b", "ALL=1", "GPU=0"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %q, want %q", s.Process.Env, want)
	}
	var names []string
	for _, h := range hook.List(s.Hooks, got) {
		names = append(names, h.String()+" "+strings.Join(h.Args, ","))
	}
	source := " (CDI specification " + dir + "/vendor.yaml)"
	if want := []string{"createContainer hook /bin/all" + source + " all,x", "createContainer hook /bin/true" + source + " ", "poststop hook /bin/false" + source + " "}; !slices.Equal(names, want) {
		t.Errorf("hooks %q, want %q", names, want)
	}
	if !slices.Equal(s.Process.User.AdditionalGids, []uint32{44, 45}) {
		t.Errorf("groups %v", s.Process.User.AdditionalGids)
	}
	if len(s.Mounts) != 2 || !slices.Equal(s.Mounts[0].Options, []string{"ro", "nosuid", "rbind"}) || s.Mounts[1].Type != "tmpfs" {
		t.Errorf("mounts %+v", s.Mounts)
	}
	if s.Linux.IntelRdt == nil || s.Linux.NetDevices["eth7"].Name != "gpu0" {
		t.Errorf("Intel RDT %+v, network devices %+v", s.Linux.IntelRdt, s.Linux.NetDevices)
	}
}

// TestMappedMounts adds a device to containers with and without a user namespace: bind
// mounts are mapped in one, however they are requested, and nothing of a container gets
// into the next.
func TestMappedMounts(t *testing.T) {
	dir := directory(t, map[string]string{"vendor.yaml": `cdiVersion: "0.7.0"
kind: vendor.com/gpu
devices:
- name: "0"
  containerEdits:
    mounts:
    - {hostPath: /a, containerPath: /a}
    - {hostPath: /b, containerPath: /b, options: [ro, nosuid, nodev]}
    - {hostPath: /c, containerPath: /c, type: bind}
    - {hostPath: /d, containerPath: /d, options: [bind, idmap]}
    - {hostPath: /e, containerPath: /e, options: [a, b, bind]}
    - {hostPath: tmpfs, containerPath: /f, type: tmpfs, options: [size=1m]}
`})
	r := New([]string{dir})
	plain := "/a rbind; /b ro,nosuid,nodev,rbind; /c ; /d bind,idmap; /e a,b,bind; /f size=1m"
	mapped := "/a rbind,ridmap; /b ro,nosuid,nodev,rbind,ridmap; /c idmap; /d bind,idmap; /e a,b,bind,idmap; /f size=1m"
	for _, want := range []string{mapped, plain, mapped, plain} {
		s := emptySpec()
		if want == mapped {
			s.Linux = &specs.Linux{
				Namespaces:  []specs.LinuxNamespace{{Type: specs.UserNamespace}},
				UIDMappings: []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}, GIDMappings: []specs.LinuxIDMapping{{HostID: 1000, Size: 10}},
			}
		}
		if _, err := r.Inject(s, []string{"vendor.com/gpu=0"}); err != nil {
			t.Fatal(err)
		}

		var got []string
		for _, m := range s.Mounts {
			got = append(got, m.Destination+" "+strings.Join(m.Options, ","))
		}
		if text := strings.Join(got, "; "); text != want {
			t.Errorf("mounts\n%s, want\n%s", text, want)
		}
	}
}

const everything = `cdiVersion: "1.1.0"
kind: vendor.com/gpu
containerEdits:
  env: [ALL=1]
  hooks: [{hookName: createContainer, path: /bin/all, args: [all, x]}]
  additionalGids: [44]
devices:
- name: "0"
  containerEdits:
    env: [GPU=0]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null}]
    mounts: [{hostPath: /lib/gpu, containerPath: /gpu, options: [ro, nosuid]}, {hostPath: tmpfs, containerPath: /scratch, type: tmpfs}]
    hooks: [{hookName: poststop, path: /bin/false}]
    intelRdt: {closID: gpus}
    netDevices: [{hostInterfaceName: eth7, name: gpu0}]
    additionalGids: [45]
- name: "1"
  containerEdits:
    hooks: [{hookName: createContainer, path: /bin/true}]
`

// TestSpecsAreReadAgain changes the directory in every way while it is in use.
func TestSpecsAreReadAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	r := New([]string{dir})
	has := func(name string) bool {
		_, err := r.Inject(emptySpec(), []string{name})
		if err != nil && !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
		return err == nil
	}
	write := func(name, content string) {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	device := func(name string) string {
		return `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": [{"name": "` + name + `", "containerEdits": {"env": ["A=b"]}}]}`
	}

	if has("vendor.com/gpu=a") {
		t.Error("a device without a directory")
	}
	write("x.json", device("a"))
	if !has("vendor.com/gpu=a") {
		t.Error("a new file is not read")
	}
	write("x.json", device("b"))
	if has("vendor.com/gpu=a") || !has("vendor.com/gpu=b") {
		t.Error("a changed file is not read")
	}

	// Broken ones affect no others.
	write("broken.json", "{")
	write("broken.yaml", "cdiVersion: [")
	write("future.json", strings.Replace(device("c"), "0.6.0", "9.0.0", 1))
	write("unknown.json", strings.Replace(device("d"), "env", "magic", 1))
	if !has("vendor.com/gpu=b") || has("vendor.com/gpu=c") || has("vendor.com/gpu=d") {
		t.Error("a broken file matters")
	}
	_, err := r.Inject(emptySpec(), []string{"vendor.com/gpu=c"})
	for _, name := range []string{"broken.json", "broken.yaml", "future.json", "unknown.json", dir, "vendor.com/gpu=b"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error %q lacks %s", err, name)
		}
	}

	if err := os.Remove(filepath.Join(dir, "x.json")); err != nil {
		t.Fatal(err)
	}
	if has("vendor.com/gpu=b") {
		t.Error("a device of a removed file")
	}
}
