package plan

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestParseOptions(t *testing.T) {
	tests := []struct {
		options string
		bind    bool
		want    mountOptions
		err     error
	}{
		{"", true, mountOptions{bind: true}, nil},
		{"rbind,ro", false, mountOptions{bind: true, recursive: true, set: unix.MOUNT_ATTR_RDONLY}, nil},
		{"ro,rw", true, mountOptions{bind: true, clear: unix.MOUNT_ATTR_RDONLY}, nil},
		{"rw,ro", true, mountOptions{bind: true, set: unix.MOUNT_ATTR_RDONLY}, nil},
		{"rro,rnosuid,noexec", true, mountOptions{bind: true, set: unix.MOUNT_ATTR_NOEXEC, all: attrs{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}}, nil},
		{"noatime", true, mountOptions{bind: true, set: unix.MOUNT_ATTR_NOATIME, clear: atimes}, nil},
		{"noatime,relatime", true, mountOptions{bind: true, clear: atimes}, nil},
		{"noatime,strictatime", true, mountOptions{bind: true, set: unix.MOUNT_ATTR_STRICTATIME, clear: atimes}, nil},
		{"rslave", true, mountOptions{bind: true, propagation: unix.MS_SLAVE}, nil},
		{"shared", true, mountOptions{bind: true, propagation: unix.MS_SHARED, ownOnly: true}, nil},
		{"ridmap,rbind", true, mountOptions{bind: true, recursive: true, idmap: true, idmapAll: true}, nil},
		{"size=1m,newinstance", false, mountOptions{data: []fsOption{{key: "size", value: "1m"}, {key: "newinstance", flag: true}}}, nil},
		{"size=1m", true, mountOptions{}, ErrSpec},
		{"nosuch", true, mountOptions{}, ErrSpec},
		{"rrw", true, mountOptions{bind: true, all: attrs{clear: unix.MOUNT_ATTR_RDONLY}}, nil},
		{"rro,rrw,rsuid,rnosuid", true, mountOptions{bind: true, all: attrs{set: unix.MOUNT_ATTR_NOSUID, clear: unix.MOUNT_ATTR_RDONLY}}, nil},
		{"rnoatime", true, mountOptions{bind: true, all: attrs{set: unix.MOUNT_ATTR_NOATIME, clear: atimes}}, nil},
		{"rnoatime,ratime", true, mountOptions{bind: true, all: attrs{clear: atimes}}, nil},
		{"rnoatime,rstrictatime", true, mountOptions{bind: true, all: attrs{set: unix.MOUNT_ATTR_STRICTATIME, clear: atimes}}, nil},
		{"sync,lazytime,silent", true, mountOptions{bind: true}, nil},
		{"sync,loud", false, mountOptions{data: []fsOption{{key: "sync", flag: true}}}, nil},
		{"tmpcopyup", false, mountOptions{copyUp: true}, nil},
		{"remount", false, mountOptions{}, ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.options, func(t *testing.T) {
			got, err := parseOptions(strings.Split(tt.options, ","), tt.bind)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if tt.err == nil && !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		change func(*specs.Spec)
		want   error
		text   string
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, ErrSpec, "missing"},
		{"no args", func(s *specs.Spec) { s.Process.Args = nil }, ErrSpec, "no program"},
		{"empty program", func(s *specs.Spec) { s.Process.Args[0] = "" }, ErrSpec, "no program"},
		{"relative cwd", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, ErrSpec, `working directory "tmp"`},
		{"NUL in env", func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }, ErrSpec, "NUL"},
		{"NUL in cwd", func(s *specs.Spec) { s.Process.Cwd = "/\x00" }, ErrSpec, "NUL"},
		{"NUL in destination", func(s *specs.Spec) { s.Mounts[0].Destination = "/a\x00" }, ErrSpec, "destination"},
		{"host name of the host", func(s *specs.Spec) { s.Hostname = "x"; namespace(s, specs.UTSNamespace) }, ErrSpec, "UTS namespace"},
		{"domain name of the host", func(s *specs.Spec) { s.Domainname = "x"; namespace(s, specs.UTSNamespace) }, ErrSpec, "UTS namespace"},
		{"time offsets of the host", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} }, ErrSpec, "without a time namespace"},
		{"time offsets of others", func(s *specs.Spec) {
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}}
			namespace(s, specs.TimeNamespace, "/proc/1/ns/time")
		}, ErrSpec, "existing time namespace"},
		{"time offset of another clock", func(s *specs.Spec) {
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {}}
			namespace(s, specs.TimeNamespace, "")
		}, ErrSpec, "realtime"},
		{"root propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" }, ErrSpec, "rootfsPropagation"},
		{"copy up of no tmpfs", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "ramfs", Options: []string{"tmpcopyup"}})
		}, ErrSpec, "tmpcopyup"},
		{"unknown limit", func(s *specs.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_X" }, ErrSpec, "RLIMIT_X"},
		{"soft above hard", func(s *specs.Spec) { s.Process.Rlimits[0].Soft = 1 << 20 }, ErrSpec, "soft RLIMIT_NOFILE"},
		{"hook without a bundle", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x"}}} }, ErrSpec, "without a bundle"},
		{"relative hook", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}} }, ErrSpec, "not absolute"},
		{"host mounts", func(s *specs.Spec) { namespace(s, specs.MountNamespace) }, ErrUnsupported, "mount namespace"},
		{"namespace twice", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
		}, ErrSpec, "duplicate namespace"},
		{"unknown namespace", func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "x" }, ErrSpec, `"x"`},
		{"mount on root", func(s *specs.Spec) { s.Mounts[0].Destination = "/a/.." }, ErrSpec, "destination"},
		{"relative source", func(s *specs.Spec) { s.Mounts[7].Source = "srv" }, ErrSpec, `source "srv"`},
		{"half a mapping", func(s *specs.Spec) { s.Mounts[7].UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, ErrSpec, "id mappings"},
		{"unknown bind option", func(s *specs.Spec) { s.Mounts[7].Options = []string{"rbind", "foo"} }, ErrSpec, `mount /data: `},
		{"device type", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "x"}} }, ErrSpec, "/dev/x"},
		{"scheduler", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "x"} }, ErrSpec, "scheduler"},
		{"I/O class", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "x"} }, ErrSpec, "priority"},
		{"memory nodes", func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "1-"}
		}, ErrSpec, "numbers"},
		{"personality", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "X"} }, ErrSpec, "personality"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := sample()
			tt.change(s)
			_, err := Container(s, Options{Name: "start container web", PodBase: true})
			if !errors.Is(err, tt.want) || !strings.HasPrefix(err.Error(), "start container web: ") || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v about %s", err, tt.want, tt.text)
			}
		})
	}

	if _, err := Exec(sample(), nil, Options{Name: "exec"}); !errors.Is(err, ErrSpec) {
		t.Errorf("exec of no process: %v", err)
	}
}

// TestCapabilitiesLeftOut covers what is a warning in the runtime-spec, not an error.
func TestCapabilitiesLeftOut(t *testing.T) {
	s := sample()
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding:    []string{"CAP_CHOWN", "CAP_NO_SUCH", "CAP_KILL"},
		Permitted:   []string{"CAP_CHOWN", "CAP_KILL", "chown"},
		Inheritable: []string{"CAP_CHOWN", "CAP_FOWNER"},
		Ambient:     []string{"CAP_CHOWN", "CAP_KILL", "CAP_FOWNER", "CAP_NO_SUCH"},
	}

	c := process{builder: newBuilder("start container web"), s: s, p: s.Process}
	sets := c.capSets()
	const chown, fowner, kill = 1 << 0, 1 << 3, 1 << 5
	if want := (capSets{bounding: chown | kill, permitted: chown | kill, inheritable: chown | fowner, ambient: chown}); sets != want {
		t.Errorf("sets are %+v, want %+v", sets, want)
	}

	want := []string{
		`capability "CAP_NO_SUCH" is unknown and left out`,
		`capability "chown" is unknown and left out`,
		"CAP_FOWNER is left out of the ambient set: it is not both permitted and inheritable",
		"CAP_KILL is left out of the ambient set: it is not both permitted and inheritable",
	}

	if got := Warnings(s); !reflect.DeepEqual(got, want) {
		t.Errorf("warnings are %q, want %q", got, want)
	}
	if got := Warnings(sample()); got != nil {
		t.Errorf("warnings about an ordinary container: %q", got)
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
		"kernel.sem": "kernel/sem",
	} {
		if got := sysctlPath(key); got != want {
			t.Errorf("path of %s is %s, want %s", key, got, want)
		}
	}
}

func TestParseList(t *testing.T) {
	for list, want := range map[string][]uint64{
		"0": {1}, "0-3,6": {0x4f}, "64": {0, 1}, "1, 3": {10}, "": {0}, "0-127": {1<<64 - 1, 1<<64 - 1},
	} {
		got, err := parseList(list)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("list %q is %x, %v, want %x", list, got, err, want)
		}
	}
	for _, list := range []string{"x", "3-1", "-1", "1-", "9999", "1,,2", "0-4294967295"} {
		if got, err := parseList(list); !errors.Is(err, ErrSpec) {
			t.Errorf("list %q is %x, %v", list, got, err)
		}
	}
}

// TestRegisters simulates every sample plan: a register must be set before it
// is read, and by the same process.
func TestRegisters(t *testing.T) {
	s := sample()
	userNamespace(s, "ns/user")
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/a/b", Type: "c"}, {Path: "/opt/x", Type: "b"}}
	o := Options{Name: "start", PodBase: true, Terminal: true, Hierarchies: []Hierarchy{{Dir: "cpu", Options: []string{"cpu"}}}}
	container, err1 := Container(s, o)
	plain := sample()
	bare, err2 := Container(plain, Options{Name: "start", HasStdin: true})
	exec, err3 := Exec(s, s.Process, o)
	sandbox, err4 := Sandbox(SandboxOptions{Name: "pod", NewNet: true, PidNS: true, Sysctls: map[string]string{"a.b": "c"}})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}

	for _, p := range []*Plan{container, bare, exec, sandbox} {
		set := map[int64]bool{}
		for i, step := range p.Steps {
			if step.Cond != Always && !set[int64(step.CondReg)] {
				t.Errorf("%s: step %d %q depends on register %d, which is not set", p.Name, i, step.Name, step.CondReg)
			}
			for _, a := range step.Args {
				if (a.Kind == ArgReg || a.Kind == ArgPassFD || a.Kind == ArgRegPtr) && !set[a.Int] {
					t.Errorf("%s: step %d %q reads register %d, which is not set", p.Name, i, step.Name, a.Int)
				}
			}

			if step.Save != NoReg {
				set[int64(step.Save)] = true
			}
		}
	}
}

const ociConfig = `{
	"ociVersion": "1.2.0",
	"process": {"terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/"},
	"root": {"path": "rootfs", "readonly": true},
	"hostname": "runc",
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/data", "source": "files", "options": ["rbind", "ro"]}
	],
	"linux": {"maskedPaths": ["/proc/kcore"], "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"}, {"type": "uts"}, {"type": "mount"}]}
}`

func TestFromOCI(t *testing.T) {
	p, err := FromOCI([]byte(ociConfig), "/bundle", Options{})
	if err != nil {
		t.Fatal(err)
	}

	var inputs []string
	for _, in := range p.Inputs {
		inputs = append(inputs, fmt.Sprint(in.Kind, " ", in.Path))
	}

	want := []string{"1 /bundle/rootfs", "2 /var/run/netns/x", "1 /dev/null", "1 /bundle/files"}
	if !reflect.DeepEqual(inputs, want) {
		t.Errorf("inputs %q, want %q", inputs, want)
	}

	if want := uint64(unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNS); p.Clone.Flags != want {
		t.Errorf("clone flags %#x, want %#x", p.Clone.Flags, want)
	}
	if p.Name != "start bundle" {
		t.Errorf("plan is named %q", p.Name)
	}

	for _, bad := range []string{"", "{", "[]", `{"process": {}}`, `{"ociVersion": "1"}`} {
		if _, err := FromOCI([]byte(bad), "/", Options{}); err == nil {
			t.Errorf("config %q was taken", bad)
		}
	}
}

func FuzzFromOCI(f *testing.F) {
	f.Add([]byte(ociConfig))
	f.Fuzz(func(t *testing.T, config []byte) {
		p, err := FromOCI(config, "/bundle", Options{})
		if err != nil {
			return
		}
		if err := p.Validate(); err != nil && !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}
