package plan

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// everything is a plan that uses every field and every kind of argument.
func everything() *Plan {
	return &Plan{
		Name: "start container web",
		Clone: Clone{
			Flags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER, Cgroup: 1,
			UIDMap: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}, GIDMap: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 4294967295, Size: 1}, {ContainerID: 7, HostID: 8, Size: 9}},
		},
		Inputs: []Input{
			{Name: "stdin", Path: "stdin"},
			{Name: "cgroup", Path: "cgroup"},
			{
				Name: "mount /data", Kind: InputMount, Path: "/srv/data", Recursive: true,
				AttrSet: unix.MOUNT_ATTR_NODEV, AttrClear: unix.MOUNT_ATTR_NOEXEC, AttrSetRecursive: unix.MOUNT_ATTR_RDONLY,
				Propagation: unix.MS_SLAVE, UIDMap: []specs.LinuxIDMapping{{ContainerID: 1, HostID: 2, Size: 3}}, GIDMap: []specs.LinuxIDMapping{{ContainerID: 4, HostID: 5, Size: 6}}, IDMapRecursive: true,
			},
			{Name: "null", Kind: InputFile, Path: "/dev/null", OpenFlags: unix.O_RDWR | unix.O_NOFOLLOW},
			{Name: "procfs", Kind: InputProc},
		},
		Steps: []Step{
			{Name: "open proc", Call: unix.SYS_FSOPEN, Args: []Arg{{Kind: ArgStr, Str: "proc"}, {Kind: ArgInt, Int: 1}}, Save: 3},
			{
				Name: "make directory", Call: unix.SYS_MKDIRAT, Save: NoReg, Ignore: []syscall.Errno{unix.EEXIST, unix.EROFS},
				Args: []Arg{{Kind: ArgReg, Int: 3}, {Kind: ArgStr, Str: "a b"}, {Kind: ArgInt, Int: 0o755}},
			},
			{Name: "wait", Call: unix.SYS_READ, Save: NoReg, Args: []Arg{{Kind: ArgSync, Int: AskDaemon}, {Kind: ArgBytes, Bytes: []byte{0}}, {Kind: ArgInt, Int: 1}}},
			{Name: "filter", Call: unix.SYS_SECCOMP, Save: NoReg, Args: []Arg{{Kind: ArgInt, Int: 1}, {Kind: ArgInt}, {Kind: ArgFilter, Bytes: make([]byte, 16)}}},
			{Name: "pass", Call: unix.SYS_SENDMSG, Save: NoReg, Args: []Arg{{Kind: ArgBack}, {Kind: ArgPassFD, Int: 15}, {Kind: ArgInt, Int: unix.MSG_NOSIGNAL}}},
			{Name: "unlock", Call: unix.SYS_IOCTL, Save: NoReg, Args: []Arg{{Kind: ArgReg, Int: 0}, {Kind: ArgInt, Int: unix.TIOCSPTLCK}, {Kind: ArgRegPtr, Int: 2, Bytes: []byte{0, 0, 0, 0, 5}}}},
			{Name: "read back", Call: unix.SYS_PREAD64, Save: NoReg, Cond: IfSet, CondReg: 4, Want: []byte("ok"), Avoid: []byte("no"), Retry: true, Args: []Arg{{Kind: ArgIn, Int: 3}, {Kind: ArgBuf, Int: 64}}},
			{Name: "fork", Call: unix.SYS_CLONE, Save: NoReg, Fork: true, Exposed: true, Args: []Arg{{Kind: ArgInt, Int: unix.CLONE_PARENT}}},
			{Name: "exec", Call: unix.SYS_EXECVE, Save: NoReg, Cond: IfUnset, CondReg: 5, Args: []Arg{{Kind: ArgStr, Str: "/bin/sh"}, {Kind: ArgStrs, Strs: []string{"sh", ""}}, {Kind: ArgStrs}}},
		},
	}
}

// TestEverythingUsesEveryField checks that every field has a value somewhere in
// the plan: one missing in the codec would go unnoticed otherwise.
func TestEverythingUsesEveryField(t *testing.T) {
	p := everything()
	seen := map[string]bool{}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				name := v.Type().Name() + "." + v.Type().Field(i).Name
				seen[name] = seen[name] || !v.Field(i).IsZero()
				walk(v.Field(i))
			}
		}
	}

	walk(reflect.ValueOf(p).Elem())
	for name, used := range seen {
		if !used {
			t.Errorf("%s is not used by the test's plan", name)
		}
	}
}

// TestDecoderLeavesNothing decodes plans of different sizes into one memory.
func TestDecoderLeavesNothing(t *testing.T) {
	big := everything()
	for range 9 {
		big.Steps = append(big.Steps, big.Steps...)
	}

	small := &Plan{Name: "small", Clone: Clone{Cgroup: -1}, Steps: []Step{{Name: "one", Save: NoReg, Args: []Arg{{}}}}}
	big.Steps = slices.DeleteFunc(big.Steps, func(s Step) bool { return s.Fork })
	var d Decoder
	for i, want := range []*Plan{everything(), small, big, small, everything(), big} {
		got, err := d.Decode(want.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Encode(), want.Encode()) {
			t.Errorf("plan %d is not what was encoded", i)
		}
	}
}

func TestCodecRoundTrip(t *testing.T) {
	p := everything()
	data := p.Encode()
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}

	if !reflect.DeepEqual(got, p) {
		t.Errorf("got  %+v\nwant %+v", got, p)
	}
	if !bytes.Equal(got.Encode(), data) {
		t.Error("a plan encodes in two ways")
	}

	for i := range data {
		data[i] ^= 0xff // the plan must not alias the data
	}
	if !reflect.DeepEqual(got, p) {
		t.Error("plan shares memory with its encoding")
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := everything().Encode()
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"nothing":      {nil, ErrVersion},
		"next version": {[]byte(strings.Replace(string(good), "plan 4", "plan 5", 1)), ErrVersion},
		"too large":    {make([]byte, MaxEncoded+1), ErrTooLarge},
	} {
		if _, err := Decode(c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}

	for n := range good {
		if _, err := Decode(good[:n]); err == nil {
			t.Errorf("cut to %d bytes: no error", n)
		}
	}

	if _, err := Decode(append(good, 0)); err == nil {
		t.Error("a byte too many: no error")
	}
}

// TestListsAreShared searches a program in many directories with a large environment.
func TestListsAreShared(t *testing.T) {
	env := []string{"PATH=/bin", "A=" + strings.Repeat("x", 100<<10)}
	p := &Plan{Name: "many", Clone: Clone{Cgroup: -1}}
	for range 100 {
		p.Steps = append(p.Steps, Step{Name: "exec", Call: unix.SYS_EXECVE, Save: NoReg, CondReg: NoReg, Args: []Arg{
			{Kind: ArgStr, Str: "/bin/a"}, {Kind: ArgStrs, Strs: []string{"a"}}, {Kind: ArgStrs, Strs: slices.Clone(env)},
		}})
	}

	data := p.Encode()
	if len(data) > 110<<10 {
		t.Errorf("%d bytes for one environment of 100 KiB", len(data))
	}

	got, err := Decode(data)
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("decoded another plan: %v", err)
	}
	if &got.Steps[0].Args[2].Strs[0] != &got.Steps[99].Args[2].Strs[0] {
		t.Error("the environment is there more than once")
	}
}

func TestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Plan){
		"no steps":            func(p *Plan) { p.Steps = nil },
		"cgroup input":        func(p *Plan) { p.Clone.Cgroup = 5 },
		"negative cgroup":     func(p *Plan) { p.Clone.Cgroup = -2 },
		"input kind":          func(p *Plan) { p.Inputs[0].Kind = InputProc + 1 },
		"register saved":      func(p *Plan) { p.Steps[0].Save = NumRegs },
		"register below none": func(p *Plan) { p.Steps[0].Save = -2 },
		"register read":       func(p *Plan) { p.Steps[1].Args[0].Int = NumRegs },
		"register passed":     func(p *Plan) { p.Steps[4].Args[1].Int = -1 },
		"register in memory":  func(p *Plan) { p.Steps[5].Args[2].Int = 99 },
		"condition":           func(p *Plan) { p.Steps[6].Cond = IfUnset + 1 },
		"condition register":  func(p *Plan) { p.Steps[6].CondReg = NumRegs },
		"wanted too long":     func(p *Plan) { p.Steps[6].Want = make([]byte, 65) },
		"avoided too long":    func(p *Plan) { p.Steps[6].Avoid = make([]byte, 65) },
		"far from the socket": func(p *Plan) { p.Steps[4].Args[0].Int = 2 },
		"exposed, no fork":    func(p *Plan) { p.Steps[0].Exposed = true },
		"gate when exposed":   func(p *Plan) { p.Steps[8].Args[0] = Arg{Kind: ArgSync} },
		"passes when exposed": func(p *Plan) { p.Steps[8].Args[0] = Arg{Kind: ArgPassFD} },
		"no memory":           func(p *Plan) { p.Steps[6].Args[1].Int = 0 },
		"input":               func(p *Plan) { p.Steps[6].Args[0].Int = 5 },
		"negative input":      func(p *Plan) { p.Steps[6].Args[0].Int = -1 },
		"too many arguments":  func(p *Plan) { p.Steps[0].Args = make([]Arg, 7) },
		"argument kind":       func(p *Plan) { p.Steps[0].Args[0].Kind = 99 },
		"NUL":                 func(p *Plan) { p.Steps[0].Args[0].Str = "a\x00b" },
		"NUL in a list":       func(p *Plan) { p.Steps[8].Args[1].Strs[1] = "\x00" },
		"empty filter":        func(p *Plan) { p.Steps[3].Args[2].Bytes = nil },
		"odd filter":          func(p *Plan) { p.Steps[3].Args[2].Bytes = make([]byte, 9) },
		"two forks":           func(p *Plan) { p.Steps[0].Fork = true },
	} {
		p := everything()
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(p)
		if err := p.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	p := everything()
	p.Steps = make([]Step, maxSteps+1)
	if err := p.Validate(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many steps: error %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(everything().Encode())
	f.Add([]byte(header))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(data)
		if err != nil {
			return
		}

		again, err := Decode(p.Encode())
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}

		if !reflect.DeepEqual(p, again) {
			t.Fatalf("got  %+v\nwant %+v", again, p)
		}
		if err := p.Print(new(strings.Builder)); err != nil {
			t.Fatal(err)
		}
	})
}
