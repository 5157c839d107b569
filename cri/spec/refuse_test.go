package spec

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crisp/runtime/hook"
)

type refusal struct {
	name   string
	change func(*Input)
	want   error
	text   string
}

// TestRefuses has a row for each configuration that must not become a container.
func TestRefuses(t *testing.T) {
	for _, list := range [][]refusal{processRefusals(), argumentRefusals(), securityRefusals(), mountRefusals(), resourceRefusals()} {
		for _, tt := range list {
			t.Run(tt.name, func(t *testing.T) {
				in := testInput()
				tt.change(&in)
				got, err := Container(in)
				if got != nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("Container() = %v, %v, want %v with %q", got, err, tt.want, tt.text)
				}
			})
		}
	}
}

func processRefusals() []refusal {
	return []refusal{
		{"no command", func(in *Input) { in.Image.Entrypoint, in.Image.Cmd = nil, nil }, ErrInvalid, "no command"},
		{"empty command", func(in *Input) { in.Config.Command = []string{""} }, ErrInvalid, "no command"},
		{"NUL in command", func(in *Input) { in.Image.Cmd = []string{"a\x00b"} }, ErrInvalid, "NUL"},
		{"NUL in the image's environment", func(in *Input) { in.Image.Env = []string{"A=\x00"} }, ErrInvalid, "NUL"},
		{"NUL in environment", func(in *Input) {
			in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0}}}
		}, ErrInvalid, "NUL"},
		{"variable without name", func(in *Input) { in.Config.Envs = []*runtimeapi.KeyValue{{}} }, ErrInvalid, "environment"},
		{"variable with equal sign", func(in *Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "a=b"}} }, ErrInvalid, "a=b"},
		{"working directory of a descriptor", func(in *Input) { in.Image.WorkingDir = "/proc/self/fd/7" }, ErrInvalid, "working directory"},
		{"… hidden", func(in *Input) { in.Image.WorkingDir = "/x/..//proc/./thread-self/cwd" }, ErrInvalid, "working directory"},
		{"… of another process", func(in *Input) { in.Config.WorkingDir = "/proc/1/root" }, ErrInvalid, "working directory"},
		{"NUL in working directory", func(in *Input) { in.Image.WorkingDir = "/a\x00" }, ErrInvalid, "NUL"},
		{"no metadata", func(in *Input) { in.Config.Metadata = nil }, ErrInvalid, "metadata"},
		{"no name", func(in *Input) { in.Config.Metadata.Name = "" }, ErrInvalid, "name"},
		{"no image", func(in *Input) { in.Config.Image = nil }, ErrInvalid, "image"},
		{"log path leads out", func(in *Input) { in.Config.LogPath = "../../etc/cron.d/x" }, ErrInvalid, "log path"},
		{"absolute log path", func(in *Input) { in.Config.LogPath = "/etc/x" }, ErrInvalid, "log path"},
		{"log path with NUL", func(in *Input) { in.Config.LogPath = "a\x00b" }, ErrInvalid, "NUL"},
		{"stop signal", func(in *Input) { in.Config.StopSignal = 200 }, ErrInvalid, "signal"},
	}
}

func securityRefusals() []refusal {
	security := func(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*Input) {
		return func(in *Input) { change(in.security()) }
	}
	type sc = runtimeapi.LinuxContainerSecurityContext
	return []refusal{
		{"unknown capability", func(in *Input) { in.capabilities([]string{"FLY"}, nil, nil) }, ErrInvalid, "FLY"},
		{"unknown dropped capability", func(in *Input) { in.capabilities(nil, []string{"FLY"}, nil) }, ErrInvalid, "FLY"},
		{"unknown ambient capability", func(in *Input) { in.capabilities(nil, nil, []string{""}) }, ErrInvalid, "capability"},
		{"privileged in a plain sandbox", security(func(s *sc) { s.Privileged = true }), ErrInvalid, "privileged sandbox"},
		{"missing seccomp profile", security(func(s *sc) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "/profiles/none"}
		}), ErrInvalid, "seccomp"},
		{"relative seccomp profile", security(func(s *sc) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "profiles/audit.json"}
		}), ErrInvalid, "not absolute"},
		{"legacy seccomp profile", security(func(s *sc) {
			//lint:ignore SA1019 kubelets of old still send it
			s.SeccompProfilePath = "strict"
		}), ErrInvalid, "strict"},
		{"unknown seccomp type", security(func(s *sc) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9} }), ErrInvalid, "seccomp"},
		{"seccomp on a kernel without", func(in *Input) {
			in.Host.Seccomp = false
			in.security().Seccomp = &runtimeapi.SecurityProfile{}
		}, ErrUnsupported, "seccomp"},
		{"AppArmor profile not loaded", func(in *Input) {
			in.Host.AppArmor = true
			in.security().Apparmor = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "ghost"}
		}, ErrInvalid, "not loaded"},
		{"AppArmor profile on a kernel without", security(func(s *sc) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: "k8s-nginx"}
		}), ErrUnsupported, "AppArmor"},
		{"AppArmor profile without name", security(func(s *sc) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: localhost}
		}), ErrInvalid, "without a name"},
		{"group without user", security(func(s *sc) { s.RunAsGroup = &runtimeapi.Int64Value{} }), ErrInvalid, "no user"},
		{"uid and user name", security(func(s *sc) {
			s.RunAsUser, s.RunAsUsername = &runtimeapi.Int64Value{}, "root"
		}), ErrInvalid, "both"},
		{"target without id", security(func(s *sc) { s.NamespaceOptions.Pid = ofTarget }), ErrInvalid, "target id"},
		{"node's PIDs in a pod without them", security(func(s *sc) { s.NamespaceOptions.Pid = node }), ErrInvalid, "PID namespace"},
		{"pod's PIDs in a pod without", security(func(s *sc) { s.NamespaceOptions.Pid = ofPod }), ErrInvalid, "PID namespace"},
		{"another user namespace", security(func(s *sc) {
			ids := []*runtimeapi.IDMapping{{HostId: 1, Length: 1}}
			s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
		}), ErrInvalid, "user namespace"},
		{"user outside of the namespace", func(in *Input) {
			in.userns()
			in.User.UID = 65536
		}, ErrInvalid, "65536"},
		{"group outside of the namespace", func(in *Input) {
			in.userns()
			in.User.Groups = []uint32{70000}
		}, ErrInvalid, "70000"},
	}
}

func mountRefusals() []refusal {
	mount := func(m *runtimeapi.Mount) func(*Input) { return func(in *Input) { in.mount(m) } }
	ids := []*runtimeapi.IDMapping{{Length: 1}}
	const slave, shared = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	img := &runtimeapi.ImageSpec{Image: "sha256:1"}
	volume := func(p string) func(*Input) {
		return func(in *Input) { in.Image.Volumes = map[string]struct{}{p: {}} }
	}

	return []refusal{
		{"source that is kept from the daemon", mount(&runtimeapi.Mount{HostPath: "/secret", ContainerPath: "/x"}), ErrUnsupported, "/secret"},
		{"relative target", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "data"}), ErrInvalid, "absolute"},
		{"target is the root", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x/.."}), ErrInvalid, "root"},
		{"not proc on /proc", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/proc/"}), ErrInvalid, "/proc"},
		{"image on /proc", mount(&runtimeapi.Mount{Image: img, ContainerPath: "/proc"}), ErrInvalid, "/proc"},
		{"relative source", mount(&runtimeapi.Mount{HostPath: "data", ContainerPath: "/x"}), ErrInvalid, "absolute"},
		{"no source", mount(&runtimeapi.Mount{ContainerPath: "/x"}), ErrInvalid, "absolute"},
		{"NUL", mount(&runtimeapi.Mount{HostPath: "/da\x00ta", ContainerPath: "/x"}), ErrInvalid, "NUL"},
		{"missing source", mount(&runtimeapi.Mount{HostPath: "/no/such", ContainerPath: "/x"}), ErrInvalid, "/no/such"},
		{"source not shared", mount(&runtimeapi.Mount{HostPath: "/slave", ContainerPath: "/x", Propagation: shared}), ErrInvalid, "not shared"},
		{"source private", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", Propagation: slave}), ErrInvalid, "slave"},
		{"unknown propagation", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", Propagation: 7}), ErrInvalid, "propagation"},
		{"recursive but writable", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", RecursiveReadOnly: true}), ErrInvalid, "read-only"},
		{"recursive and shared", mount(&runtimeapi.Mount{
			HostPath: "/shared", ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: shared,
		}), ErrInvalid, "read-only"},
		{"recursive on an old kernel", func(in *Input) {
			in.Host.RecursiveReadOnly = false
			in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true})
		}, crierrors.ErrRROUnsupported, "RROUnsupported"},
		{"unknown option", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", MountOptions: []string{"suid"}}), ErrInvalid, "suid"},
		{"unknown option of an image", mount(&runtimeapi.Mount{Image: img, ContainerPath: "/x", MountOptions: []string{"rw"}}), ErrInvalid, "rw"},
		{"image and path", mount(&runtimeapi.Mount{Image: img, HostPath: "/data", ContainerPath: "/x"}), ErrInvalid, "both"},
		{"image without reference", mount(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{}, ContainerPath: "/x"}), ErrInvalid, "reference"},
		{"image with propagation", mount(&runtimeapi.Mount{Image: img, ContainerPath: "/x", Propagation: slave}), ErrInvalid, "propagation"},
		{"sub path leads out", mount(&runtimeapi.Mount{Image: img, ContainerPath: "/x", ImageSubPath: "a/../../b"}), ErrInvalid, "sub path"},
		{"absolute sub path", mount(&runtimeapi.Mount{Image: img, ContainerPath: "/x", ImageSubPath: "/a"}), ErrInvalid, "sub path"},
		{"uids without gids", mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", UidMappings: ids}), ErrInvalid, "mappings"},
		{"mapping of nothing", mount(&runtimeapi.Mount{
			HostPath: "/data", ContainerPath: "/x", UidMappings: ids, GidMappings: []*runtimeapi.IDMapping{{}},
		}), ErrInvalid, "length 0"},
		{"id-mapped on an old kernel", func(in *Input) {
			in.Host.IDMapMounts = false
			in.mount(&runtimeapi.Mount{HostPath: "/data", ContainerPath: "/x", UidMappings: ids, GidMappings: ids})
		}, ErrUnsupported, "id-mapped"},
		{"volume /proc", volume("/proc"), ErrInvalid, "/proc"},
		{"volume below /proc", volume("/proc/self/attr"), ErrInvalid, "/proc"},
		{"volume /sys in disguise", volume("/var/../sys/"), ErrInvalid, "sys"},
		{"volume above the root", volume("../../"), ErrInvalid, "volume"},
		{"relative volume proc", volume("proc/x"), ErrInvalid, "proc"},
		{"too many volumes", func(in *Input) {
			in.Image.Volumes = map[string]struct{}{}
			for i := range maxVolumes + 1 {
				in.Image.Volumes["/v"+strings.Repeat("x", i)] = struct{}{}
			}
		}, ErrInvalid, "128"},
	}
}

func resourceRefusals() []refusal {
	limits := func(r *runtimeapi.LinuxContainerResources) func(*Input) {
		return func(in *Input) { in.Config.Linux.Resources = r }
	}
	device := func(d ...*runtimeapi.Device) func(*Input) { return func(in *Input) { in.Config.Devices = d } }
	return []refusal{
		{"quota below 1 ms", limits(&runtimeapi.LinuxContainerResources{CpuQuota: 999}), ErrInvalid, "quota"},
		{"quota below -1", limits(&runtimeapi.LinuxContainerResources{CpuQuota: -2}), ErrInvalid, "quota"},
		{"negative shares", limits(&runtimeapi.LinuxContainerResources{CpuShares: -1}), ErrInvalid, "shares"},
		{"swap below memory", limits(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 2, MemorySwapLimitInBytes: 1}), ErrInvalid, "swap"},
		{"score", limits(&runtimeapi.LinuxContainerResources{OomScoreAdj: -1001}), ErrInvalid, "oom_score_adj"},
		{"unified path", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}}), ErrInvalid, "unified"},
		{"unified control file", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"tasks": "1"}}), ErrInvalid, "unified"},
		{"unified processes", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.procs": "1"}}), ErrInvalid, "no limit"},
		{"unified kill", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.kill": "1"}}), ErrInvalid, "no limit"},
		{"unified NUL", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1\x00"}}), ErrInvalid, "NUL"},
		{"unified on v1", func(in *Input) {
			in.Host.CgroupV2 = false
			limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}})(in)
		}, ErrUnsupported, "unified"},
		{"huge pages of unknown size", limits(&runtimeapi.LinuxContainerResources{
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: 1}},
		}), ErrUnsupported, "1GB"},
		{"missing device", device(&runtimeapi.Device{HostPath: "/dev/nope", ContainerPath: "/dev/x"}), ErrInvalid, "/dev/nope"},
		{"directory without devices", device(&runtimeapi.Device{HostPath: "/dev/empty", ContainerPath: "/dev/x"}), ErrInvalid, "no device"},
		{"invalid CDI device", func(in *Input) {
			in.CDI = func(*specs.Spec, []string) (hook.Sources, error) { return nil, nil }
			in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "gpu"}}
		}, ErrInvalid, "gpu"},
		{"CDI device that fails", func(in *Input) {
			in.CDI = func(*specs.Spec, []string) (hook.Sources, error) { return nil, io.ErrUnexpectedEOF }
			in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=0"}}
		}, io.ErrUnexpectedEOF, "invalid"},
		{"network device in the node's network", func(in *Input) {
			in.Sandbox.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
			netDevices(map[string]specs.LinuxNetDevice{"eth1": {}})(in)
		}, ErrInvalid, "no network of its own"},
		{"network device without a possible name", netDevices(map[string]specs.LinuxNetDevice{"eth1": {Name: "a/b"}}), ErrInvalid, "a/b"},
		{"network device called as the loopback", netDevices(map[string]specs.LinuxNetDevice{"eth1": {Name: "lo"}}), ErrInvalid, "loopback"},
		{"two network devices with one name", netDevices(map[string]specs.LinuxNetDevice{"eth1": {Name: "net0"}, "net0": {}}), ErrInvalid, "net0"},
		{"CDI device on a node without", func(in *Input) {
			in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=0"}}
		}, ErrUnsupported, "CDI"},
		{"device permissions", device(&runtimeapi.Device{HostPath: "/dev/fuse", ContainerPath: "/dev/x", Permissions: "rwx"}), ErrInvalid, "rwx"},
		{"relative device", device(&runtimeapi.Device{HostPath: "/dev/fuse", ContainerPath: "dev/x"}), ErrInvalid, "absolute"},
		{"two devices at one path", device(
			&runtimeapi.Device{HostPath: "/dev/fuse", ContainerPath: "/dev/x"},
			&runtimeapi.Device{HostPath: "/dev/sda", ContainerPath: "/dev/x"},
		), ErrInvalid, "/dev/x"},
		{"another device at a path of a privileged container", func(in *Input) {
			in.privileged()
			device(&runtimeapi.Device{HostPath: "/dev/fuse", ContainerPath: "/dev/sda"})(in)
		}, ErrInvalid, "/dev/sda"},
	}
}

// netDevices requests a CDI device with network devices.
func netDevices(list map[string]specs.LinuxNetDevice) func(*Input) {
	return func(in *Input) {
		in.CDI = func(s *specs.Spec, _ []string) (hook.Sources, error) {
			s.Linux.NetDevices = list
			return nil, nil
		}
		in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=0"}}
	}
}
