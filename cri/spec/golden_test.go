package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/capability"
	"crisp/runtime/hook"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fakeNode is a machine with a few paths and devices.
type fakeNode struct {
	paths    map[string]string // path to the path behind its links
	created  []string
	profiles []string
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		paths: map[string]string{
			"/lib/gpu": "/lib/gpu",
			"/data":    "/data", "/link": "/data/real", "/shared": "/shared", "/slave": "/slave", "/proc": "/proc",
			"/var/lib/kubelet/hosts": "/var/lib/kubelet/hosts",
		},
		profiles: []string{"k8s-nginx", "crisp-default"},
	}
}

func (n *fakeNode) Resolve(path string, create bool) (string, error) {
	if p, ok := n.paths[path]; ok {
		return p, nil
	}
	if path == "/secret" {
		return "", &fs.PathError{Op: "stat", Path: path, Err: fs.ErrPermission}
	}
	if create {
		n.created = append(n.created, path)
		return path, nil
	}
	return "", &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
}

func device(path, kind string, major, minor int64) specs.LinuxDevice {
	mode, uid, gid := os.FileMode(0o660), uint32(0), uint32(6)
	return specs.LinuxDevice{Path: path, Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid}
}

func (n *fakeNode) Devices(path string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	for _, d := range []specs.LinuxDevice{
		device("/dev/fuse", "c", 10, 229), device("/dev/sda", "b", 8, 0),
		device("/dev/snd/pcm", "c", 116, 2), device("/dev/snd/timer", "c", 116, 33),
	} {
		if within(d.Path, path) {
			out = append(out, d)
		}
	}
	if len(out) == 0 && path != "/dev/empty" {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return out, nil
}

func (n *fakeNode) Mounts() ([]*mountinfo.Info, error) {
	return []*mountinfo.Info{
		{Mountpoint: "/"},
		{Mountpoint: "/shared", Optional: "shared:5"},
		{Mountpoint: "/slave", Optional: "master:5"},
	}, nil
}

func (n *fakeNode) AppArmorLoaded(name string) (bool, error) {
	return slices.Contains(n.profiles, name), nil
}

// testInput is a container as kubelet asks for one, on a machine that can
// do everything.
func testInput() Input {
	return Input{
		Sandbox: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"},
			Hostname: "web-0",
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "nginx"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:0123"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/kcore", "/sys/firmware"},
					ReadonlyPaths:    []string{"/proc/sys"},
				},
			},
		},
		Image:       ocispec.ImageConfig{Entrypoint: []string{"/nginx"}, Cmd: []string{"-g", "daemon off;"}, Env: []string{"PATH=/bin"}},
		User:        ResolvedUser{Groups: []uint32{0}, Name: "root", Home: "/root"},
		Hostname:    "web-0",
		CgroupsPath: "/kubepods/pod1/c1",
		Files:       Files{Hosts: "/pods/1/hosts", Hostname: "/pods/1/hostname", ResolvConf: "/pods/1/resolv.conf"},
		VolumeDir:   "/pods/1/c1/volumes",
		Host: Host{
			Capabilities: capability.All(), KnownCapabilities: capability.All(), OOMScoreAdjMin: -1000, CgroupV2: true,
			SwapLimit: true, HugePageSizes: []string{"2MB"}, Seccomp: true, IDMapMounts: true, RecursiveReadOnly: true,
		},
		Node: newFakeNode(),
		Seccomp: Seccomp{
			Default: func(caps []string) *specs.LinuxSeccomp {
				action := specs.LinuxSeccompAction("default for " + strings.Join(caps, " "))
				return &specs.LinuxSeccomp{DefaultAction: action}
			},
			Load: func(path string) (*specs.LinuxSeccomp, error) {
				if path != "/profiles/audit.json" {
					return nil, fs.ErrNotExist
				}
				return &specs.LinuxSeccomp{DefaultAction: specs.ActLog}, nil
			},
		},
	}
}

func (in *Input) security() *runtimeapi.LinuxContainerSecurityContext {
	return in.Config.Linux.SecurityContext
}

func (in *Input) podSecurity() *runtimeapi.LinuxSandboxSecurityContext {
	return in.Sandbox.Linux.SecurityContext
}

func (in *Input) privileged() {
	in.podSecurity().Privileged, in.security().Privileged = true, true
}

func (in *Input) mount(m ...*runtimeapi.Mount) { in.Config.Mounts = append(in.Config.Mounts, m...) }

func (in *Input) userns() {
	ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
	o := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	in.podSecurity().NamespaceOptions.UsernsOptions = o
	in.security().NamespaceOptions.UsernsOptions = o
}

func (in *Input) capabilities(add, drop, ambient []string) {
	in.security().Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop, AddAmbientCapabilities: ambient}
}

const (
	node      = runtimeapi.NamespaceMode_NODE
	ofPod     = runtimeapi.NamespaceMode_POD
	ofTarget  = runtimeapi.NamespaceMode_TARGET
	localhost = runtimeapi.SecurityProfile_Localhost
)

// TestGolden compares whole results with the files in testdata.
func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, tt := range goldenCases() {
		t.Run(tt.name, func(t *testing.T) {
			in := testInput()
			tt.change(&in)
			got, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", tt.name+".json"), got)
		})
		seen[tt.name+".json"] = true
	}

	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}

	for _, f := range files {
		if !f.IsDir() && !seen[f.Name()] {
			t.Errorf("testdata/%s belongs to no case", f.Name())
		}
	}
}

func compare(t *testing.T, file string, got *Result) {
	t.Helper()
	data, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}

	data = append(data, '\n')
	if *update {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}

	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != string(want) {
		t.Errorf("%s differs:\n%s", file, difference(string(want), string(data)))
	}
}

// difference shows the lines that are in only one of two texts.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var out []string
	for _, l := range w {
		if !slices.Contains(g, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

func goldenCases() []goldenCase {
	return slices.Concat(processCases(), securityCases(), namespaceCases(), mountCases(), resourceCases())
}

type goldenCase struct {
	name   string
	change func(*Input)
}

func processCases() []goldenCase {
	return []goldenCase{
		{"default", func(*Input) {}},
		{"tty", func(in *Input) { in.Config.Tty = true }},
		{"env-order", func(in *Input) {
			in.Image.Env = []string{"PATH=/image", "A=1", "HOSTNAME=image", "broken", "=x", "HOME=/image", "LAST=a=b"}
			in.Config.Envs = []*runtimeapi.KeyValue{
				{Key: "A", Value: []byte("2")}, {Key: "B", Value: []byte("x\ny=z")}, {Key: "A", Value: []byte("3")},
			}
		}},
		{"user", func(in *Input) {
			in.User = ResolvedUser{UID: 1000, GID: 1000, Groups: []uint32{1000, 4, 27}, Name: "app", Home: "/home/app"}
			in.Image.WorkingDir = "app/../srv"
		}},
		{"rlimits", func(in *Input) {
			in.Defaults.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}}
		}},
		{"stop-signal", func(in *Input) {
			in.Image.StopSignal = "SIGQUIT"
			in.Config.StopSignal = runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3
		}},
		{"stop-signal-of-image-bad", func(in *Input) { in.Image.StopSignal = "$(reboot)" }},
	}
}

func securityCases() []goldenCase {
	return []goldenCase{
		{"privileged", func(in *Input) {
			in.privileged()
			in.security().Seccomp = &runtimeapi.SecurityProfile{}
		}},
		{"privileged-on-weak-machine", func(in *Input) {
			in.privileged()
			in.Host.Capabilities = []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}
			in.capabilities([]string{"SYS_RESOURCE"}, nil, nil)
		}},
		{"privileged-userns", func(in *Input) {
			in.privileged()
			in.userns()
		}},
		{"caps-add-all-drop-one", func(in *Input) { in.capabilities([]string{"all"}, []string{"cap_sys_admin"}, nil) }},
		{"caps-drop-all-add-one", func(in *Input) { in.capabilities([]string{"NET_ADMIN"}, []string{"ALL"}, nil) }},
		{"caps-add-and-drop", func(in *Input) { in.capabilities([]string{"SYS_TIME", "BPF"}, []string{"CAP_BPF", "KILL"}, nil) }},
		{"caps-ambient", func(in *Input) {
			in.User.UID = 1000
			in.capabilities(nil, []string{"ALL"}, []string{"NET_BIND_SERVICE"})
		}},
		{"caps-missing-on-machine", func(in *Input) {
			in.Host.Capabilities = []string{"CAP_CHOWN", "CAP_KILL"}
			in.capabilities([]string{"SYS_RESOURCE"}, nil, nil)
		}},
		{"caps-of-node", func(in *Input) { in.Defaults.Capabilities = []string{"CAP_KILL"} }},
		{"no-new-privs-readonly-root", func(in *Input) {
			in.security().NoNewPrivs, in.security().ReadonlyRootfs = true, true
		}},
		{"proc-unmasked", func(in *Input) {
			in.security().MaskedPaths, in.security().ReadonlyPaths = nil, nil
		}},
		{"seccomp-default", func(in *Input) { in.security().Seccomp = &runtimeapi.SecurityProfile{} }},
		{"seccomp-localhost", func(in *Input) {
			in.security().Seccomp = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "/profiles/audit.json"}
		}},
		{"seccomp-legacy", func(in *Input) {
			//lint:ignore SA1019 kubelets of old still send it
			in.security().SeccompProfilePath = "localhost//profiles/audit.json"
		}},
		{"apparmor-default", func(in *Input) {
			in.Host.AppArmor, in.Defaults.AppArmorProfile = true, "crisp-default"
		}},
		{"apparmor-default-not-loaded", func(in *Input) {
			in.Host.AppArmor, in.Defaults.AppArmorProfile = true, "ghost"
		}},
		{"apparmor-localhost", func(in *Input) {
			in.Host.AppArmor = true
			in.security().Apparmor = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "k8s-nginx"}
		}},
		{"apparmor-legacy-unconfined", func(in *Input) {
			in.Host.AppArmor, in.Defaults.AppArmorProfile = true, "crisp-default"
			//lint:ignore SA1019 kubelets of old still send it
			in.security().ApparmorProfile = "unconfined"
		}},
		{"selinux", func(in *Input) {
			in.Labels = Labels{Process: "system_u:system_r:container_t:s0:c1,c2", Mount: "system_u:object_r:container_file_t:s0:c1,c2"}
			in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/data", SelinuxRelabel: true})
		}},
	}
}

func namespaceCases() []goldenCase {
	pid := func(pod, container runtimeapi.NamespaceMode) func(*Input) {
		return func(in *Input) {
			in.podSecurity().NamespaceOptions.Pid, in.security().NamespaceOptions.Pid = pod, container
			in.security().NamespaceOptions.TargetId = "target"
		}
	}
	return []goldenCase{
		{"pid-of-pod", pid(ofPod, ofPod)},
		{"pid-of-node", pid(node, node)},
		{"pid-of-target", pid(runtimeapi.NamespaceMode_CONTAINER, ofTarget)},
		{"pid-unset", func(in *Input) {
			pid(node, node)(in)
			in.security().NamespaceOptions = nil
		}},
		{"network-of-node", func(in *Input) { in.podSecurity().NamespaceOptions.Network = node }},
		{"ipc-of-node", func(in *Input) { in.podSecurity().NamespaceOptions.Ipc = node }},
		{"userns", (*Input).userns},
		{"userns-network-of-node", func(in *Input) {
			in.userns()
			in.podSecurity().NamespaceOptions.Network = node
		}},
		{"userns-ipc-of-node", func(in *Input) {
			in.userns()
			in.podSecurity().NamespaceOptions.Ipc = node
		}},
		{"userns-tiny", func(in *Input) {
			ids := []*runtimeapi.IDMapping{{HostId: 1000, Length: 1}}
			in.podSecurity().NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
		}},
	}
}

func mountCases() []goldenCase {
	const (
		slave  = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		shared = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	)
	return []goldenCase{
		{"mounts", func(in *Input) {
			in.mount(
				&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/a/b/c", Readonly: true, ImageSubPath: "/of no meaning"},
				&runtimeapi.Mount{HostPath: "/link", ContainerPath: "/a/", RecursiveReadOnly: true, Readonly: true},
				&runtimeapi.Mount{HostPath: "/slave", ContainerPath: "/slave", Propagation: slave},
				&runtimeapi.Mount{HostPath: "/shared", ContainerPath: "/shared", Propagation: shared},
				&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/opt/../opt", MountOptions: []string{"noexec", "nodev", "noexec"}},
			)
		}},
		{"mounts-replace-defaults", func(in *Input) {
			in.mount(&runtimeapi.Mount{HostPath: "/proc", ContainerPath: "/proc"})
			for _, p := range []string{"/dev/shm", "/etc/hosts", "/sys"} {
				in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: p})
			}
		}},
		{"mounts-replace-dev", func(in *Input) { in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/dev"}) }},
		{"mounts-idmapped", func(in *Input) {
			in.userns()
			ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
			in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/data", UidMappings: ids, GidMappings: ids})
		}},
		{"mounts-image", func(in *Input) {
			in.mount(
				&runtimeapi.Mount{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "sha256:1"}, ImageSubPath: "a/b"},
				&runtimeapi.Mount{ContainerPath: "/tools", Image: &runtimeapi.ImageSpec{Image: "sha256:2"}, MountOptions: []string{"noexec"}},
			)
		}},
		{"mounts-create-missing", func(in *Input) {
			in.Defaults.CreateMissingHostPaths = true
			in.mount(&runtimeapi.Mount{HostPath: "/no/such", ContainerPath: "/x"})
		}},
		{"volumes", func(in *Input) {
			in.Image.Volumes = map[string]struct{}{"/var/data": {}, "cache/": {}, "/cache": {}, "/taken": {}, "/dev/x": {}, "/etc/hosts": {}, "/etc": {}}
			in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/taken"})
		}},
		{"volumes-userns", func(in *Input) {
			in.userns()
			in.Image.Volumes = map[string]struct{}{"/var/data": {}}
		}},
		{"volumes-ignored", func(in *Input) {
			in.Defaults.IgnoreImageVolumes = true
			in.Image.Volumes = map[string]struct{}{"/proc": {}}
		}},
		{"cgroup-writable", func(in *Input) { in.Defaults.WritableCgroups = true }},
		{"no-files", func(in *Input) { in.Files = Files{} }},
	}
}

func resourceCases() []goldenCase {
	limits := func(r *runtimeapi.LinuxContainerResources) func(*Input) {
		return func(in *Input) { in.Config.Linux.Resources = r }
	}
	return []goldenCase{
		{"resources", limits(&runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 999,
			CpusetCpus: "0-1", CpusetMems: "0", Unified: map[string]string{"memory.high": "1000"},
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
		})},
		{"resources-swap", limits(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20})},
		{"resources-no-swap-limit", func(in *Input) {
			in.Host.SwapLimit = false
			limits(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20})(in)
		}},
		{"resources-unset", limits(nil)},
		{"pids-limit", func(in *Input) { in.Defaults.PidsLimit = 100 }},
		{"oom-score-clamped", func(in *Input) {
			in.Host.OOMScoreAdjMin = 100
			limits(&runtimeapi.LinuxContainerResources{OomScoreAdj: -998})(in)
		}},
		{"devices", func(in *Input) {
			in.Defaults.DeviceOwnership = true
			in.security().RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			in.Config.Devices = []*runtimeapi.Device{
				{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"},
				{HostPath: "/dev/snd", ContainerPath: "/dev/sound/", Permissions: "r"},
			}
		}},
		{"devices-cdi", func(in *Input) {
			in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=0"}}
			in.Config.Annotations = map[string]string{"cdi.k8s.io/x": "vendor.com/gpu=1"}
			in.CDI = func(s *specs.Spec, names []string) (hook.Sources, error) {
				s.Process.Env = append(s.Process.Env, names...)
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/gpu", Source: "/lib/gpu", Options: []string{"rbind", "ro"}})

				s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/gpu", Type: "c", Major: 195})
				return nil, nil
			}
		}},
		{"devices-privileged", func(in *Input) {
			in.privileged()
			in.Config.Devices = []*runtimeapi.Device{
				{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse"},
				{HostPath: "/dev/sda", ContainerPath: "/dev/disk"},
			}
		}},
	}
}

// TestPure calls twice with the same input, of which nothing may change.
func TestPure(t *testing.T) {
	for _, tt := range goldenCases() {
		in := testInput()
		tt.change(&in)
		before := in.Config.String() + in.Sandbox.String()
		one, err1 := Container(in)
		two, err2 := Container(in)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}

		a, _ := json.Marshal(one)
		b, _ := json.Marshal(two)
		if string(a) != string(b) {
			t.Errorf("%s: two calls differ", tt.name)
		}

		if in.Config.String()+in.Sandbox.String() != before {
			t.Errorf("%s: the input changed", tt.name)
		}
	}
}
