package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sample is a container as the CRI creates it.
func sample() *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_SETUID"}
	score := 990
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/bin/server", "-v"}, Env: []string{"PATH=/usr/bin:/bin", "A=b"}, Cwd: "/srv/data",
			User:         specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 2000}},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}},
			OOMScoreAdj:  &score, NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "shm", Source: "pod", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/var/lib/pods/1/hosts", Options: []string{"rbind", "ro"}},
			{Destination: "/data", Type: "bind", Source: "/srv", Options: []string{"rbind", "rslave", "noexec"}},
			{Destination: "/data/image", Type: "image", Source: "image/0", Options: []string{"ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: "ns/net"}, {Type: specs.IPCNamespace, Path: "ns/ipc"}, {Type: specs.UTSNamespace, Path: "ns/uts"},
			},
			MaskedPaths: []string{"/proc/keys"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

// namespace replaces a namespace of s; without a path it becomes the host's.
func namespace(s *specs.Spec, t specs.LinuxNamespaceType, path ...string) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	for _, p := range path {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: p})
	}
}

func userNamespace(s *specs.Spec, path string) {
	namespace(s, specs.UserNamespace, path)
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
}

func TestGoldenContainers(t *testing.T) {
	filter := &Filter{Prog: []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}}
	tests := []struct {
		name   string
		change func(*specs.Spec, *Options)
	}{
		{"default", nil},
		{"cgroup-v2", func(_ *specs.Spec, o *Options) { o.CgroupV2, o.CgroupTasks, o.Hierarchies = true, 0, nil }},
		{"privileged", func(s *specs.Spec, _ *Options) {
			all := capability.All()
			s.Process.User, s.Process.NoNewPrivileges = specs.User{}, false
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			namespace(s, specs.CgroupNamespace)
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}, {Path: "/dev/sda", Type: "b", Major: 8}}
			s.Mounts[7].Options = []string{"rbind", "rshared"}
			s.Linux.RootfsPropagation = "rshared"
		}},
		{"user-namespace", func(s *specs.Spec, _ *Options) {
			userNamespace(s, "ns/user")
			s.Mounts[7].UIDMappings, s.Mounts[7].GIDMappings = s.Linux.UIDMappings, s.Linux.GIDMappings
		}},
		{"user-namespace-host-network", func(s *specs.Spec, _ *Options) {
			userNamespace(s, "ns/user")
			namespace(s, specs.NetworkNamespace)
			namespace(s, specs.UTSNamespace)
		}},
		{"host-namespaces", func(s *specs.Spec, _ *Options) {
			for _, t := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.UTSNamespace, specs.IPCNamespace, specs.PIDNamespace} {
				namespace(s, t)
			}
		}},
		{"pod-pid", func(s *specs.Spec, _ *Options) { namespace(s, specs.PIDNamespace, "ns/pid") }},
		{"terminal", func(s *specs.Spec, o *Options) {
			o.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 80, Height: 25}
		}},
		{"seccomp-after", func(_ *specs.Spec, o *Options) { o.Seccomp = filter }},
		{"seccomp-before", func(s *specs.Spec, o *Options) { o.Seccomp, s.Process.NoNewPrivileges = filter, false }},
		{"labels", func(s *specs.Spec, _ *Options) {
			s.Process.ApparmorProfile, s.Process.SelinuxLabel = "crisp-default", "system_u:system_r:container_t:s0:c1,c2"
			s.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
		}},
		{"hooks", func(s *specs.Spec, o *Options) {
			s.Root.Readonly = true
			s.Hooks = &specs.Hooks{
				CreateRuntime:   []specs.Hook{{Path: "/usr/bin/announce"}},
				CreateContainer: []specs.Hook{{Path: "/usr/bin/link", Args: []string{"link", "libx.so.1", "/lib/libx.so"}}, {Path: "/usr/bin/ldcache"}},
				StartContainer:  []specs.Hook{{Path: "/bin/ready"}},
				Poststart:       []specs.Hook{{Path: "/usr/bin/later"}},
			}
			o.BundleAt, o.BundleRoot = "/run/crisp", "hooks/1/rootfs"
		}},
		{"everything-else", func(s *specs.Spec, o *Options) {
			s.Root.Readonly = true
			s.Process.Args = []string{"server"}
			s.Process.Capabilities.Inheritable, s.Process.Capabilities.Ambient = s.Process.Capabilities.Permitted, s.Process.Capabilities.Permitted
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mem", Type: "tmpfs", Options: []string{"size=1m"}},
				specs.Mount{Destination: "/mem/below", Type: "bind", Source: "/srv", Options: []string{"bind", "rro"}})

			low, limit := -100, map[string]uint64{"RLIMIT_NOFILE": 2048}
			o.Machine = Machine{Caps: 1<<10 | 1, LastCap: 40, MinOOMScore: &low, HardLimits: limit}
			o.Gate, o.HasStdin = true, true
		}},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := sample()
			o := Options{
				Name: "start container web", PodBase: true, CgroupTasks: 2,
				Hierarchies: []Hierarchy{{Dir: "cpu,cpuacct", Options: []string{"cpu", "cpuacct"}}, {Dir: "systemd", Options: []string{"xattr", "name=systemd"}}},
			}

			if tt.change != nil {
				tt.change(s, &o)
			}
			before, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}

			p, err := Container(s, o)
			golden(t, "container-"+tt.name, p, err)
			if after, _ := json.Marshal(s); !bytes.Equal(before, after) {
				t.Error("the spec was changed")
			}
		})
	}
}

func TestGoldenExecs(t *testing.T) {
	for _, name := range []string{"plain", "user-namespace", "terminal", "host-pid", "labels"} {
		t.Run(name, func(t *testing.T) {
			s, o := sample(), Options{Name: "exec in container web", CgroupTasks: 1}
			p := &specs.Process{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
			switch name {
			case "user-namespace":
				userNamespace(s, "ns/user")
			case "terminal":
				o.Terminal, o.CgroupTasks, o.CgroupV2 = true, 0, true
			case "labels":
				p.SelinuxLabel, s.Linux.MountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
			case "host-pid":
				namespace(s, specs.PIDNamespace)
				p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1", Final: "1"}
			}

			plan, err := Exec(s, p, o)
			golden(t, "exec-"+name, plan, err)
		})
	}
}

func TestGoldenSandboxes(t *testing.T) {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for name, o := range map[string]SandboxOptions{
		"default":    {Hostname: "web-0", NewNet: true, NewIPC: true, NewUTS: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "1"}},
		"host":       {},
		"shared-pid": {Hostname: "web-0", NewNet: true, NewIPC: true, NewUTS: true, PidNS: true, CgroupV2: true, ShmSize: 1 << 20},
		"labels": {
			Hostname: "web-0", NewNet: true, NewIPC: true, NewUTS: true, PidNS: true,
			ProcessLabel: "system_u:system_r:container_t:s0:c1,c2", MountLabel: "system_u:object_r:container_file_t:s0:c1,c2",
		},
		"user-and-pid": {Hostname: "web-0", NewNet: true, NewIPC: true, NewUTS: true, PidNS: true, NewUser: true, UIDMap: ids, GIDMap: ids},
	} {
		t.Run(name, func(t *testing.T) {
			o.Name = "make namespaces of default/web"
			p, err := Sandbox(o)
			golden(t, "sandbox-"+name, p, err)
		})
	}
}

func TestGoldenRestore(t *testing.T) {
	s := sample()
	o := Options{Name: "start container web", PodBase: true, CgroupTasks: 1, Hierarchies: []Hierarchy{{Dir: "cpu,cpuacct", Options: []string{"cpu", "cpuacct"}}}}
	r := RestoreOptions{
		Args: []string{"/usr/sbin/criu", "swrk", "900"}, Env: []string{"PATH=/bin"}, Files: []string{"criu", "stdout"},
		Yard: "/run/crisp/yard", Mounts: []string{"/etc/hosts", "/data"},
	}
	p, err := Restore(s, o, r)
	golden(t, "restore", p, err)

	many := sample()
	for i := range FirstFile {
		many.Mounts = append(many.Mounts, specs.Mount{Type: "bind", Source: fmt.Sprintf("/srv/%d", i), Destination: fmt.Sprintf("/more/%d", i)})
	}
	if _, err := Restore(many, o, r); !errors.Is(err, ErrTooLarge) {
		t.Errorf("with as many inputs as there are numbers below: error %v", err)
	}

	namespace(s, specs.PIDNamespace, "ns/pid")
	if _, err := Restore(s, o, r); !errors.Is(err, ErrUnsupported) {
		t.Errorf("with a PID namespace of the pod's: error %v", err)
	}
	for _, change := range []func(*RestoreOptions){
		func(r *RestoreOptions) { r.Args = nil },
		func(r *RestoreOptions) { r.Args = []string{"criu"} },
		func(r *RestoreOptions) { r.Yard = "/" },
	} {
		bad := r
		change(&bad)
		if _, err := Restore(sample(), o, bad); !errors.Is(err, ErrSpec) {
			t.Errorf("%+v: error %v", bad, err)
		}
	}
}

// golden compares a plan with its golden file, and round-trips its encoding.
func golden(t *testing.T, name string, p *Plan, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}

	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	decoded, err := Decode(p.Encode())
	if err != nil {
		t.Fatal(err)
	}

	if !bytes.Equal(decoded.Encode(), p.Encode()) {
		t.Error("the plan does not survive encoding")
	}
	var got bytes.Buffer
	if err := p.Print(&got); err != nil {
		t.Fatal(err)
	}

	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}

	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("plan differs from %s (see go test -update):\n%s", file, got.String())
	}
}

func BenchmarkContainer(b *testing.B) {
	s := sample()
	o := Options{Name: "start container web", PodBase: true, CgroupTasks: 9}
	for b.Loop() {
		if _, err := Container(s, o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	p, err := Container(sample(), Options{Name: "start container web", PodBase: true})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p.Encode()
	}
}

func BenchmarkDecode(b *testing.B) {
	p, err := Container(sample(), Options{Name: "start container web", PodBase: true})
	if err != nil {
		b.Fatal(err)
	}
	data := p.Encode()
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}

// TestLabelOfMessageQueues expects the node's message queues, which a container
// without an IPC namespace mounts, to be unchanged.
func TestLabelOfMessageQueues(t *testing.T) {
	for own, want := range map[bool]int{true: 1, false: 0} {
		s := sample()
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue"})
		s.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
		if !own {
			namespace(s, specs.IPCNamespace)
		}

		p, err := Container(s, Options{Name: "start container web", PodBase: true})
		if err != nil {
			t.Fatal(err)
		}

		got := 0
		for i := range p.Steps {
			if p.Steps[i].Call == unix.SYS_FSETXATTR {
				got++
			}
		}

		if got != want {
			t.Errorf("with an IPC namespace %v: %d labels are set, want %d", own, got, want)
		}
	}
}
