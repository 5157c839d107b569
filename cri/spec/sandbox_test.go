package spec

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func testSandbox() *runtimeapi.PodSandboxConfig {
	in := testInput()
	return in.Sandbox
}

func options(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return cfg.Linux.SecurityContext.NamespaceOptions
}

func setUserns(cfg *runtimeapi.PodSandboxConfig, size uint32) {
	ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: size}}
	options(cfg).UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
}

func TestSandboxOptions(t *testing.T) {
	cfg := testSandbox()
	o, err := SandboxOptions(cfg)
	if err != nil {
		t.Fatal(err)
	}

	if !o.NewNet || !o.NewUTS || !o.NewIPC || o.NewUser || o.PidNS || o.Hostname != "web-0" {
		t.Errorf("plain pod: %+v", o)
	}
	options(cfg).Network, options(cfg).Ipc, options(cfg).Pid = node, node, ofPod
	if o, err = SandboxOptions(cfg); err != nil {
		t.Fatal(err)
	}

	if o.NewNet || o.NewUTS || o.NewIPC || !o.PidNS || len(o.Sysctls) != 0 {
		t.Errorf("pod in the node's namespaces: %+v", o)
	}
	cfg = testSandbox()
	setUserns(cfg, 65536)
	if o, err = SandboxOptions(cfg); err != nil {
		t.Fatal(err)
	}

	if !o.NewUser || len(o.UIDMap) != 1 || o.UIDMap[0].HostID != 100000 || o.UIDMap[0].Size != 65536 {
		t.Errorf("pod with a user namespace: %+v", o)
	}
	if uid, gid := RootIDs(cfg); uid != 100000 || gid != 100000 {
		t.Errorf("RootIDs() = %d, %d", uid, gid)
	}
}

func TestSandboxWithoutLinux(t *testing.T) {
	o, err := SandboxOptions(&runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"},
	})
	if err != nil || !o.NewNet || !o.PidNS || o.NewUser {
		t.Errorf("SandboxOptions() = %+v, %v", o, err)
	}
}

func TestSysctls(t *testing.T) {
	implicit := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	for _, tt := range []struct {
		name   string
		change func(*runtimeapi.PodSandboxConfig)
		in     map[string]string
		want   map[string]string // in addition to the implicit ones
		err    string
	}{
		{name: "implicit"},
		{name: "dots", in: map[string]string{"net.core.somaxconn": "1024"}, want: map[string]string{"net.core.somaxconn": "1024"}},
		{name: "slashes", in: map[string]string{"net/core/somaxconn": "1"}, want: map[string]string{"net.core.somaxconn": "1"}},
		{name: "interface, set once it is there", in: map[string]string{"net.ipv4.conf.eth0/100.rp_filter": "2"}},
		{
			name: "all interfaces, slashes",
			in:   map[string]string{"net/ipv4/conf/all/rp_filter": "2", "net/ipv6/conf/default/accept_ra": "0"},
			want: map[string]string{"net.ipv4.conf.all.rp_filter": "2", "net.ipv6.conf.default.accept_ra": "0"},
		},
		{
			name: "explicit beats implicit", in: map[string]string{"net/ipv4/ip_unprivileged_port_start": "1024"},
			want: map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024"},
		},
		{
			name: "ipc", in: map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "kernel.sem": "1 2 3 4"},
			want: map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "kernel.sem": "1 2 3 4"},
		},
		{
			name: "user", in: map[string]string{"user.max_user_namespaces": "0"},
			change: func(c *runtimeapi.PodSandboxConfig) { setUserns(c, 1000) },
			want:   map[string]string{"user.max_user_namespaces": "0", "net.ipv4.ping_group_range": "0 999"},
		},
		{name: "user without namespace", in: map[string]string{"user.max_user_namespaces": "0"}, err: "user namespace"},
		{name: "net of the node", in: map[string]string{"net.core.somaxconn": "1"}, change: func(c *runtimeapi.PodSandboxConfig) { options(c).Network = node }, err: "network"},
		{name: "ipc of the node", in: map[string]string{"kernel.msgmax": "1"}, change: func(c *runtimeapi.PodSandboxConfig) { options(c).Ipc = node }, err: "IPC"},
		{name: "hostname", in: map[string]string{"kernel.hostname": "x"}, err: "does not belong"},
		{name: "core pattern", in: map[string]string{"kernel.core_pattern": "|/x"}, err: "does not belong"},
		{name: "like an allowed one", in: map[string]string{"kernel.shmmax2": "1"}, err: "does not belong"},
		{name: "vm", in: map[string]string{"vm.overcommit_memory": "1"}, err: "does not belong"},
		{name: "climbs", in: map[string]string{"net/../kernel/core_pattern": "x"}, err: "name of sysctl"},
		{name: "climbs with dots", in: map[string]string{"net.//.kernel.core_pattern": "x"}, err: "name of sysctl"},
		{name: "empty part", in: map[string]string{"net..x": "x"}, err: "name of sysctl"},
		{name: "empty", in: map[string]string{"": "x"}, err: "name of sysctl"},
		{name: "plus in the name", in: map[string]string{"net.x+kernel.core_pattern": "x"}, err: "name of sysctl"},
		{name: "plus in the value", in: map[string]string{"kernel.shmmax": "1+kernel.core_pattern=|/x"}, want: map[string]string{"kernel.shmmax": "1+kernel.core_pattern=|/x"}},
		{name: "line break", in: map[string]string{"kernel.shmmax": "1\n2"}, err: "value of sysctl"},
		{name: "twice", in: map[string]string{"net.core.somaxconn": "1", "net/core/somaxconn": "2"}, err: "twice"},
		{name: "long", in: map[string]string{"kernel.shmmax": strings.Repeat("1", 5000)}, err: "value of sysctl"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testSandbox()
			cfg.Linux.Sysctls = tt.in
			if tt.change != nil {
				tt.change(cfg)
			}

			o, err := SandboxOptions(cfg)
			if tt.err != "" {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("err = %v, want ErrInvalid with %q", err, tt.err)
				}
				return
			}

			want := maps.Clone(implicit)
			maps.Copy(want, tt.want)
			if err != nil || !maps.Equal(o.Sysctls, want) {
				t.Errorf("sysctls = %v, %v, want %v", o.Sysctls, err, want)
			}
		})
	}
}

func FuzzSysctlName(f *testing.F) {
	for _, s := range []string{"net.ipv4.ip_forward", "net/../x", "a/b.c", "..", "+"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, err := sysctlPath(name)
		if err != nil {
			return
		}

		if strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") || strings.Contains("/"+p+"/", "/../") || strings.ContainsAny(p, "\x00\n+ ") {
			t.Errorf("sysctlPath(%q) = %q", name, p)
		}
		if back, err := sysctlPath(swapSeparators(p)); err != nil || back != p {
			if strings.ContainsAny(p, "/") {
				t.Errorf("%q does not survive its dotted form: %q, %v", p, back, err)
			}
		}
	})
}

func TestValidateSandboxRefuses(t *testing.T) {
	type cfg = runtimeapi.PodSandboxConfig
	mapping := func(c *cfg, uids, gids []*runtimeapi.IDMapping) {
		options(c).UsernsOptions = &runtimeapi.UserNamespace{Uids: uids, Gids: gids}
	}

	one := []*runtimeapi.IDMapping{{HostId: 1000, Length: 100}}
	for _, tt := range []struct {
		name   string
		change func(*cfg)
		text   string
	}{
		{"no metadata", func(c *cfg) { c.Metadata = nil }, "metadata"},
		{"no uid", func(c *cfg) { c.Metadata.Uid = "" }, "uid"},
		{"no namespace", func(c *cfg) { c.Metadata.Namespace = "" }, "namespace"},
		{"hostname too long", func(c *cfg) { c.Hostname = strings.Repeat("x", 65) }, "65"},
		{"hostname with line break", func(c *cfg) { c.Hostname = "a\nb" }, "hostname"},
		{"relative log directory", func(c *cfg) { c.LogDirectory = "logs" }, "log directory"},
		{"log directory too long", func(c *cfg) { c.LogDirectory = strings.Repeat("/x", 2048) }, "4096 bytes"},
		{"log directory with NUL", func(c *cfg) { c.LogDirectory = "/a\x00b" }, "NUL"},
		{"group without user", func(c *cfg) { c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{} }, "run_as_group but without"},
		{"network of a container", func(c *cfg) { options(c).Network = runtimeapi.NamespaceMode_CONTAINER }, "network"},
		{"ipc of a target", func(c *cfg) { options(c).Ipc = ofTarget }, "IPC"},
		{"pid of a target", func(c *cfg) { options(c).Pid = ofTarget }, "PID"},
		{"userns of a container", func(c *cfg) {
			options(c).UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}
		}, "CONTAINER"},
		{"userns of a target", func(c *cfg) { options(c).UsernsOptions = &runtimeapi.UserNamespace{Mode: ofTarget} }, "TARGET"},
		{"userns of the node with a mapping", func(c *cfg) { options(c).UsernsOptions = &runtimeapi.UserNamespace{Mode: node, Uids: one} }, "given for the node"},
		{"no mapping", func(c *cfg) { mapping(c, nil, nil) }, "exactly one"},
		{"two mappings", func(c *cfg) { mapping(c, append(one, one...), one) }, "exactly one"},
		{"no gids", func(c *cfg) { mapping(c, one, nil) }, "exactly one"},
		{"not from 0", func(c *cfg) { mapping(c, []*runtimeapi.IDMapping{{ContainerId: 1, HostId: 1, Length: 1}}, one) }, "begins at 1"},
		{"lengths differ", func(c *cfg) { mapping(c, one, []*runtimeapi.IDMapping{{HostId: 1, Length: 1}}) }, "100 uids and 1 gids"},
		{"overflow", func(c *cfg) {
			m := []*runtimeapi.IDMapping{{HostId: 1 << 31, Length: 1 << 31}}
			mapping(c, m, m)
		}, "range of ids"},
		{"userns with the node's PIDs", func(c *cfg) {
			setUserns(c, 100)
			options(c).Pid = node
		}, "PID namespace"},
		{"DNS server with line break", func(c *cfg) { c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nx"}} }, "DNS"},
		{"empty DNS search", func(c *cfg) { c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{""}} }, "DNS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testSandbox()
			tt.change(c)
			err := ValidateSandbox(c)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("ValidateSandbox() = %v, want ErrInvalid with %q", err, tt.text)
			}
		})
	}

	c := testSandbox()
	c.Hostname = strings.Repeat("x", 64)
	if err := ValidateSandbox(c); err != nil {
		t.Errorf("hostname of 64 characters: %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	host := []byte("nameserver 9.9.9.9\n")
	for _, tt := range []struct {
		name string
		dns  *runtimeapi.DNSConfig
		want string
	}{
		{"none", nil, "nameserver 9.9.9.9\n"},
		{"empty", &runtimeapi.DNSConfig{}, ""},
		{"full", &runtimeapi.DNSConfig{
			Servers: []string{"10.0.0.2", "fd00::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5", "edns0"},
		}, "search a.b c\nnameserver 10.0.0.2\nnameserver fd00::1\noptions ndots:5 edns0\n"},
	} {
		if got := ResolvConf(tt.dns, host); string(got) != tt.want {
			t.Errorf("%s: ResolvConf() = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestHostname(t *testing.T) {
	c := testSandbox()
	if got := Hostname(c, "n1"); got != "web-0" {
		t.Errorf("Hostname() = %q", got)
	}
	c.Hostname = ""
	if got := Hostname(c, "n1"); got != "n1" {
		t.Errorf("Hostname() without one = %q", got)
	}
	c.Hostname = "web-0"
	options(c).Network = node
	if got := Hostname(c, "n1"); got != "n1" {
		t.Errorf("Hostname() with the node's network = %q", got)
	}
}

func TestLogPath(t *testing.T) {
	pod := &runtimeapi.PodSandboxConfig{LogDirectory: "/var/log/pods/x"}
	if got := LogPath(pod, &runtimeapi.ContainerConfig{LogPath: "a/0.log"}); got != "/var/log/pods/x/a/0.log" {
		t.Errorf("LogPath() = %q", got)
	}
	if got := LogPath(&runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{LogPath: "a/0.log"}); got != "" {
		t.Errorf("LogPath() without directory = %q", got)
	}
}

func TestNamespaceOptionsAreNeverNil(t *testing.T) {
	if NamespaceOptions(&runtimeapi.PodSandboxConfig{}) == nil {
		t.Error("nil")
	}
	c := testSandbox()
	if !proto.Equal(NamespaceOptions(c), options(c)) {
		t.Error("options changed")
	}
}

// TestPodUser has the pod's own first process take the user that the pod asks for.
func TestPodUser(t *testing.T) {
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	for _, tt := range []struct {
		sc   *runtimeapi.LinuxSandboxSecurityContext
		want specs.User
		err  error
	}{
		{&runtimeapi.LinuxSandboxSecurityContext{}, specs.User{}, nil},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsUser: id(1000)}, specs.User{UID: 1000}, nil},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsUser: id(1), RunAsGroup: id(2), SupplementalGroups: []int64{3, 4, 3}}, specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 4}}, nil},
		{&runtimeapi.LinuxSandboxSecurityContext{SupplementalGroups: []int64{5}}, specs.User{AdditionalGids: []uint32{5}}, nil},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsGroup: id(2)}, specs.User{}, ErrInvalid},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsUser: id(-1)}, specs.User{}, ErrInvalid},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsUser: id(1 << 32)}, specs.User{}, ErrInvalid},
		{&runtimeapi.LinuxSandboxSecurityContext{SupplementalGroups: []int64{-7}}, specs.User{}, ErrInvalid},
	} {
		cfg := testInput().Sandbox
		cfg.Linux.SecurityContext = tt.sc

		o, err := SandboxOptions(cfg)
		if !errors.Is(err, tt.err) || err == nil && !reflect.DeepEqual(o.User, tt.want) {
			t.Errorf("user %+v, %v, want %+v, %v", o.User, err, tt.want, tt.err)
		}
	}
}

// TestSysctlLines takes values as a file has them.
// TestNetworkSysctls lists those of all interfaces before those of one.
func TestNetworkSysctls(t *testing.T) {
	cfg := testSandbox()
	cfg.Linux.Sysctls = map[string]string{
		"net.ipv4.conf.eth0/100.rp_filter": "2", "net/ipv4/conf/aa.1/rp_filter": "1\n", "net.ipv6.conf.all.disable_ipv6": "1",
		"net.ipv4.neigh.eth0.gc_stale_time": "9", "net.core.somaxconn": "1024", "kernel.shm_rmid_forced": "1",
	}
	got, err := NetworkSysctls(cfg)
	want := [][2]string{
		{"net/core/somaxconn", "1024"}, {"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv4/conf/aa.1/rp_filter", "1"}, {"net/ipv4/conf/eth0.100/rp_filter", "2"}, {"net/ipv4/neigh/eth0/gc_stale_time", "9"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestSysctlLines(t *testing.T) {
	cfg := testInput().Sandbox
	for value, ok := range map[string]bool{"1": true, "1\n": true, "1\n\n": true, "1\n2": false, "1\r\n": false, "\n1": false} {
		cfg.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": value}
		o, err := SandboxOptions(cfg)
		if ok != (err == nil) || ok && o.Sysctls["net.ipv4.ip_forward"] != "1" || !ok && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q, %v", value, o.Sysctls["net.ipv4.ip_forward"], err)
		}
	}
}
