package spec

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/host"
)

func TestArgs(t *testing.T) {
	for _, tt := range []struct {
		name                           string
		command, args, entrypoint, cmd []string
		want                           []string
	}{
		{"image only", nil, nil, []string{"e"}, []string{"c"}, []string{"e", "c"}},
		{"args replace cmd", nil, []string{"a"}, []string{"e"}, []string{"c"}, []string{"e", "a"}},
		{"command replaces both", []string{"x"}, nil, []string{"e"}, []string{"c"}, []string{"x"}},
		{"command and args", []string{"x"}, []string{"a"}, []string{"e"}, []string{"c"}, []string{"x", "a"}},
		{"empty element", []string{"x"}, []string{""}, nil, nil, []string{"x", ""}},
		{"entrypoint taken away", nil, nil, []string{""}, []string{"c"}, []string{"c"}},
		{"entrypoint taken away, args", nil, []string{"a"}, []string{""}, []string{"c"}, []string{"a"}},
		{"entrypoint with an empty word", nil, nil, []string{"e", ""}, nil, []string{"e", ""}},
		{"only cmd", nil, nil, nil, []string{"c"}, []string{"c"}},
		{"only args", nil, []string{"a"}, nil, []string{"c"}, []string{"a"}},
	} {
		in := testInput()
		in.Config.Command, in.Config.Args = tt.command, tt.args
		in.Image.Entrypoint, in.Image.Cmd = tt.entrypoint, tt.cmd

		got, err := Container(in)
		if err != nil || !slices.Equal(got.Spec.Process.Args, tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestHome(t *testing.T) {
	for _, tt := range []struct{ home, image, want string }{
		{"/root", "", "/root"}, {"", "", "/"}, {"/root", "HOME=/image", "/image"}, {"/root", "HOME=", "/root"},
		{"/a\nevil:x:0:0::/:/bin/sh", "", "/"}, {"/a\rb", "", "/"}, {"/a\x00b", "", "/"},
	} {
		in := testInput()
		in.User.Home = tt.home
		if tt.image != "" {
			in.Image.Env = []string{tt.image}
		}

		got, err := Container(in)
		if err != nil || !slices.Contains(got.Spec.Process.Env, "HOME="+tt.want) {
			t.Errorf("home %q, image %q: %v, %v, want %q", tt.home, tt.image, got.Spec.Process.Env, err, tt.want)
		}
	}
}

// TestEncodeKeepsBytes uses an environment that JSON cannot hold.
func TestEncodeKeepsBytes(t *testing.T) {
	for _, value := range []string{"plain", "\xff\xfe", "\xed\xa0\x80"} {
		in := testInput()
		in.Config.Envs = []*runtimeapi.KeyValue{{Key: "X", Value: []byte(value)}}
		r, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}

		data, err := Encode(r.Spec)
		if err != nil {
			t.Fatal(err)
		}

		back, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}

		if !slices.Equal(back.Process.Env, r.Spec.Process.Env) {
			t.Errorf("environment %q became %q", r.Spec.Process.Env, back.Process.Env)
		}
		if back.Linux.CgroupsPath != r.Spec.Linux.CgroupsPath || len(back.Mounts) != len(r.Spec.Mounts) {
			t.Error("the rest of the spec changed")
		}
	}
	if _, err := Decode([]byte("{")); err == nil {
		t.Error("Decode() of half a file succeeded")
	}
}

func TestInheritableStaysEmpty(t *testing.T) {
	for _, tt := range goldenCases() {
		in := testInput()
		tt.change(&in)
		r, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}

		c := r.Spec.Process.Capabilities
		if !slices.Equal(c.Inheritable, c.Ambient) || len(in.security().GetCapabilities().GetAddAmbientCapabilities()) == 0 && len(c.Inheritable) != 0 {
			t.Errorf("%s: inheritable %v, ambient %v", tt.name, c.Inheritable, c.Ambient)
		}

		for _, name := range slices.Concat(c.Effective, c.Permitted, c.Ambient) {
			if !slices.Contains(c.Bounding, name) {
				t.Errorf("%s: %s is not in the bounding set", tt.name, name)
			}
		}
	}
}

func TestCheckPropagation(t *testing.T) {
	const (
		private = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
		slave   = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		shared  = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	)

	table := []*mountinfo.Info{
		{Mountpoint: "/", Optional: "shared:1"},
		{Mountpoint: "/a", Optional: ""},
		{Mountpoint: "/a/b", Optional: "master:1"},
		{Mountpoint: "/a/b", Optional: "shared:9 master:1"},
		{Mountpoint: "/ab", Optional: "master:1 propagate_from:2"},
	}

	for _, tt := range []struct {
		source string
		p      runtimeapi.MountPropagation
		ok     bool
	}{
		{"/x", shared, true}, {"/x", slave, true}, {"/a", shared, false}, {"/a/c", slave, false}, {"/a/c", private, true},
		{"/a/b/c", shared, true}, {"/ab", slave, true}, {"/ab/c", shared, false}, {"/abc", shared, true},
	} {
		if err := CheckPropagation(table, tt.source, tt.p); (err == nil) != tt.ok {
			t.Errorf("CheckPropagation(%s, %s) = %v", tt.source, tt.p, err)
		}
	}

	if err := CheckPropagation(nil, "/x", slave); !errors.Is(err, ErrInvalid) {
		t.Errorf("empty table: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"15": 15, "SIGTERM": 15, "TERM": 15, "sigkill": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMIN+30": 64, "37": 37,
		"RTMAX": 64, "SIGRTMAX-14": 50, "CLD": 17, "SIGPOLL": 29, "1": 1, "64": 64, "09": 9,
	} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("ParseSignal(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "0", "65", "-1", "+9", "SIG", "SIGSIGTERM", "RTMIN+31", "RTMIN-1", "RTMIN+", "RTMIN+-1", "RTMAX-31", "RTMAX+1",
		"99999999999999999999", "TERM ", "SIGRTMIN+ 3",
	} {
		if got, err := ParseSignal(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseSignal(%q) = %d, %v, want ErrInvalid", s, got, err)
		}
	}
}

// TestCRISignals goes there and back for every constant of the CRI.
func TestCRISignals(t *testing.T) {
	aliases := map[runtimeapi.Signal]runtimeapi.Signal{
		runtimeapi.Signal_SIGNAL_SIGCLD:  runtimeapi.Signal_SIGNAL_SIGCHLD,
		runtimeapi.Signal_SIGNAL_SIGPOLL: runtimeapi.Signal_SIGNAL_SIGIO,
		runtimeapi.Signal_SIGNAL_SIGIOT:  runtimeapi.Signal_SIGNAL_SIGABRT,
	}
	for n, name := range runtimeapi.Signal_name {
		s := runtimeapi.Signal(n)
		sig, err := FromCRI(s)
		if err != nil {
			t.Errorf("FromCRI(%s): %v", name, err)
			continue
		}

		if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			continue
		}
		want := s

		if a, ok := aliases[s]; ok {
			want = a
		}
		if got := ToCRI(sig); got != want {
			t.Errorf("%s is signal %d, which is %s", name, sig, got)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, tt := range []struct {
		configured runtimeapi.Signal
		image      string
		want       syscall.Signal
	}{
		{0, "", syscall.SIGTERM}, {0, "SIGUSR1", syscall.SIGUSR1}, {0, "junk", syscall.SIGTERM},
		{runtimeapi.Signal_SIGNAL_SIGINT, "SIGUSR1", syscall.SIGINT},
	} {
		got, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: tt.configured}, tt.image)
		if err != nil || got != tt.want {
			t.Errorf("StopSignal(%s, %q) = %d, %v, want %d", tt.configured, tt.image, got, err, tt.want)
		}
	}
}

func FuzzParseSignal(f *testing.F) {
	f.Add("SIGRTMIN+3")
	f.Add("9")
	f.Fuzz(func(t *testing.T, s string) {
		if sig, err := ParseSignal(s); err == nil && (sig < 1 || sig > sigRTMax) {
			t.Errorf("ParseSignal(%q) = %d", s, sig)
		}
	})
}

func FuzzWorkingDir(f *testing.F) {
	f.Add("/proc/self/fd/3")
	f.Add("a/../..")
	f.Fuzz(func(t *testing.T, s string) {
		dir, err := workingDir("", s)
		if err == nil && (!strings.HasPrefix(dir, "/") || strings.HasPrefix(dir+"/", "/proc/self/") || strings.Contains(dir, "\x00")) {
			t.Errorf("workingDir(%q) = %q", s, dir)
		}
	})
}

func TestMergeResources(t *testing.T) {
	type res = runtimeapi.LinuxContainerResources
	full := &res{
		CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 100, OomScoreAdj: 5, CpusetCpus: "0", CpusetMems: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"a.b": "1"},
	}

	for _, tt := range []struct {
		name              string
		old, update, want *res
	}{
		{"nothing", full, &res{}, full},
		{"to nothing", nil, full, full},
		{"cpuset only", &res{MemoryLimitInBytes: 1, CpuShares: 2}, &res{CpusetCpus: "1"}, &res{MemoryLimitInBytes: 1, CpuShares: 2, CpusetCpus: "1"}},
		{"quota off", &res{CpuQuota: 5000}, &res{CpuQuota: -1}, &res{CpuQuota: -1}},
		{"without swap", &res{MemoryLimitInBytes: 10}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20}},
		{"equal swap", &res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 20}},
		{"keeps swap", &res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 25}},
		{"new swap", &res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 22}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 22}},
		{"huge pages", &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}}},
			&res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: 3}, {PageSize: "64kB", Limit: 4}}},
			&res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 3}, {PageSize: "64kB", Limit: 4}}}},
		{"unified", &res{Unified: map[string]string{"a.b": "1", "c.d": "2"}}, &res{Unified: map[string]string{"c.d": "3"}},
			&res{Unified: map[string]string{"a.b": "1", "c.d": "3"}}},
		{"unified to none", &res{}, &res{Unified: map[string]string{"c.d": "3"}}, &res{Unified: map[string]string{"c.d": "3"}}},
	} {
		var before *res
		if tt.old != nil {
			before = proto.Clone(tt.old).(*res)
		}

		got := MergeResources(tt.old, tt.update)
		if !proto.Equal(got, tt.want) {
			t.Errorf("%s: MergeResources() = %v, want %v", tt.name, got, tt.want)
		}

		for range 100 {
			got = MergeResources(got, tt.update)
		}
		if !proto.Equal(got, tt.want) {
			t.Errorf("%s: after 100 updates %v, want %v", tt.name, got, tt.want)
		}
		if before != nil && !proto.Equal(before, tt.old) {
			t.Errorf("%s: the old limits changed", tt.name)
		}
	}
}

func TestHostOf(t *testing.T) {
	f := host.Facts{
		Capabilities: 1 << 0, LastCap: 1, CgroupV2: host.Yes, HugePageSizes: []string{"2MB"}, OOMScoreAdj: 3,
		SeccompActions: []string{"errno"}, RecursiveReadOnly: host.Yes, IDMapMounts: host.Unknown,
	}

	root := fstest.MapFS{
		"sys/fs/cgroup/cgroup.controllers": {Data: []byte("cpu hugetlb memory\n")},
		"proc/swaps":                       {},
		"proc/cmdline":                     {Data: []byte("quiet\n")},
	}

	h := HostOf(f, root)
	if !slices.Equal(h.Capabilities, []string{"CAP_CHOWN"}) || !slices.Equal(h.KnownCapabilities, []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"}) {
		t.Errorf("capabilities %v of %v", h.Capabilities, h.KnownCapabilities)
	}
	if !h.SwapLimit || !slices.Equal(h.HugePageSizes, []string{"2MB"}) || h.OOMScoreAdjMin != 3 || !h.Seccomp || h.IDMapMounts || !h.RecursiveReadOnly {
		t.Errorf("HostOf() = %+v", h)
	}

	f.CgroupV2, f.SysResource = host.No, host.Yes
	if h = HostOf(f, root); h.SwapLimit || h.HugePageSizes != nil || h.OOMScoreAdjMin != -1000 {
		t.Errorf("HostOf() on v1 = %+v", h)
	}

	root["sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"] = &fstest.MapFile{}
	root["sys/fs/cgroup/hugetlb/tasks"] = &fstest.MapFile{}
	if h = HostOf(f, root); !h.SwapLimit || h.HugePageSizes == nil {
		t.Errorf("HostOf() on v1 with its controllers = %+v", h)
	}
}

func TestCreateMissing(t *testing.T) {
	in := testInput()
	in.mount(&runtimeapi.Mount{HostPath: "/no/such", ContainerPath: "/x"})
	in.Defaults.CreateMissingHostPaths = true
	if _, err := Container(in); err != nil {
		t.Fatal(err)
	}
	if got := in.Node.(*fakeNode).created; !slices.Equal(got, []string{"/no/such"}) {
		t.Errorf("created %q", got)
	}
}

func TestMountsAreSorted(t *testing.T) {
	for _, tt := range goldenCases() {
		in := testInput()
		tt.change(&in)
		r, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}

		seen := map[string]bool{}
		for i, m := range r.Spec.Mounts {
			if seen[m.Destination] {
				t.Errorf("%s: two mounts at %s", tt.name, m.Destination)
			}
			seen[m.Destination] = true

			for _, later := range r.Spec.Mounts[i+1:] {
				if within(m.Destination, later.Destination) {
					t.Errorf("%s: %s is mounted before %s", tt.name, m.Destination, later.Destination)
				}
			}
		}
	}
}

// FuzzImage gives an image's whole configuration to [Container]: whatever it
// says, the spec keeps to what an image may choose.
func FuzzImage(f *testing.F) {
	f.Add([]byte(`{"Env":["A=b"],"Entrypoint":["/x"],"Cmd":["y"],"WorkingDir":"../a","Volumes":{"/proc":{},"v/../w":{}},"StopSignal":"9"}`), "0:0")
	f.Add([]byte(`{"Cmd":["sh"],"Labels":{"io.kubernetes.x":"y"},"Volumes":{"/dev/shm":{},"/etc/hosts":{}}}`), "a")
	plain := testInput()
	plain.Image.Cmd = []string{"x"}

	reference, err := Container(plain)
	if err != nil {
		f.Fatal(err)
	}

	f.Fuzz(func(t *testing.T, config []byte, user string) {
		in := testInput()
		if json.Unmarshal(config, &in.Image) != nil {
			return
		}

		in.Image.User = user
		r, err := Container(in)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("err = %v", err)
			}
			return
		}
		checkImageChoices(t, reference.Spec, r)
	})
}

// checkImageChoices compares everything in which an image has no say.
func checkImageChoices(t *testing.T, want *specs.Spec, r *Result) {
	t.Helper()
	got := *r.Spec
	var mounts []specs.Mount
	for _, m := range got.Mounts {
		if !strings.HasPrefix(m.Source, "/pods/1/c1/volumes/") {
			mounts = append(mounts, m)
		} else if within(m.Destination, "/proc") || within(m.Destination, "/sys") || within(m.Destination, "/dev") || !strings.HasPrefix(m.Destination, "/") {
			t.Errorf("volume at %s", m.Destination)
		}
	}

	process := *got.Process
	if !strings.HasPrefix(process.Cwd, "/") {
		t.Errorf("working directory %q", process.Cwd)
	}

	process.Args, process.Env, process.Cwd = want.Process.Args, want.Process.Env, want.Process.Cwd
	got.Process, got.Mounts = &process, mounts
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("the image changed more than it may: %+v", got)
	}
}

// TestAppArmorProfileNames has the name of a profile in the ways it is sent:
// alone by kubelet, with a prefix by critest and in the older field.
func TestAppArmorProfileNames(t *testing.T) {
	localhost := func(ref string) func(*Input) {
		return func(in *Input) {
			in.security().Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
		}
	}
	for _, change := range []func(*Input){
		localhost("k8s-nginx"),
		localhost("localhost/k8s-nginx"),
		//lint:ignore SA1019 kubelets of old still send it
		func(in *Input) { in.security().ApparmorProfile = "localhost/k8s-nginx" },
	} {
		in := testInput()
		in.Host.AppArmor = true
		change(&in)

		r, err := Container(in)
		if err != nil {
			t.Error(err)
		} else if got := r.Spec.Process.ApparmorProfile; got != "k8s-nginx" {
			t.Errorf("the profile is %q, want k8s-nginx", got)
		}
	}
}
