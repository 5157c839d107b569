package criu

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
)

// standIn plays CRIU at the other end of a session: it sends messages, each after the
// next one has come, and returns what came.
func standIn(t *testing.T, s *Session, send []*rpc.CriuResp, file *os.File) <-chan []*rpc.CriuReq {
	t.Helper()
	fd, err := unix.Dup(int(s.Socket().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []*rpc.CriuReq, 1)
	go func() {
		defer unix.Close(fd)
		var list []*rpc.CriuReq
		defer func() { got <- list }()
		text := make([]byte, maxResponse)
		for _, m := range send {
			n, err := unix.Read(fd, text)
			if err != nil || n == 0 {
				return
			}
			request := new(rpc.CriuReq)
			if request.UnmarshalVT(slices.Clone(text[:n])) != nil {
				return
			}
			list = append(list, request)

			var oob []byte
			if m.GetNotify().GetScript() == string(Terminal) {
				oob = unix.UnixRights(int(file.Fd()))
			}
			out, err := m.MarshalVT()
			if err != nil || unix.Sendmsg(fd, out, oob, nil, unix.MSG_NOSIGNAL) != nil {
				return
			}
		}
	}()
	return got
}

func notice(stage Stage, pid int32) *rpc.CriuResp {
	n := &rpc.CriuNotify{Script: to(string(stage))}
	if pid != 0 {
		n.Pid = to(pid)
	}
	return &rpc.CriuResp{Type: to(rpc.CriuReqType_NOTIFY), Success: to(true), Notify: n}
}

func ended(success bool) *rpc.CriuResp {
	return &rpc.CriuResp{Type: to(rpc.CriuReqType_RESTORE), Success: to(success)}
}

func TestSession(t *testing.T) {
	refusal := errors.New("no")
	for name, test := range map[string]struct {
		send   []*rpc.CriuResp
		log    string
		at     func(Event) error
		want   error // nil for success
		says   string
		stages []Stage
	}{
		"whole": {
			send:   []*rpc.CriuResp{notice("pre-restore", 0), notice(Terminal, 0), notice(Made, 77), notice(Ready, 0), ended(true)},
			stages: []Stage{"pre-restore", Terminal, Made, Ready},
		},
		"refused by CRIU": {
			send: []*rpc.CriuResp{ended(false)}, log: "(00.1) Error (criu/x.c:1): cannot do this\n", want: ErrRefused, says: "cannot do this",
		},
		"refused here": {
			send: []*rpc.CriuResp{notice(Made, 77), notice(Ready, 0), ended(true)}, want: refusal, stages: []Stage{Made, Ready},
			at: func(e Event) error {
				if e.Stage == Ready {
					return refusal
				}
				return nil
			},
		},
		"CRIU ends": {send: []*rpc.CriuResp{notice(Made, 77)}, want: ErrRefused, stages: []Stage{Made}},
	} {
		s, err := Program{Path: "/none"}.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		work := t.TempDir()
		if err := os.WriteFile(filepath.Join(work, RestoreLog), []byte(test.log), 0o600); err != nil {
			t.Fatal(err)
		}

		var stages []Stage
		got := standIn(t, s, test.send, file)
		err = s.Run(t.Context(), Restore{Images: t.TempDir(), Work: work, Root: "/yard/root", Mounts: map[string]string{"/a b": "/yard/0"}, Files: map[string]int{"net": 905}}, func(e Event) error {
			stages = append(stages, e.Stage)
			if (e.File != nil) != (e.Stage == Terminal) {
				t.Errorf("%s: a file at %s: %v", name, e.Stage, e.File)
			}
			closeFile(e.File)
			if e.Stage == Ready && e.First != 77 {
				t.Errorf("%s: the first process is %d", name, e.First)
			}
			if test.at != nil {
				return test.at(e)
			}
			return nil
		})
		s.Close()
		if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: error %v", name, err)
		}
		if !slices.Equal(stages, test.stages) {
			t.Errorf("%s: stages %v, want %v", name, stages, test.stages)
		}

		requests := <-got
		o := requests[0].GetOpts()
		if !slices.Equal(o.GetExternal(), []string{"mnt[/a b]:/yard/0"}) || !o.GetRstSibling() || o.GetTcpEstablished() || !o.GetTcpClose() || o.GetManageCgroupsMode() != rpc.CriuCgMode_IGNORE || o.GetInheritFd()[0].GetFd() != 905 {
			t.Errorf("%s: asked for %v", name, o)
		}
		file.Close()
	}
}

// TestLabels expects that it is never the images that decide on the label.
func TestLabels(t *testing.T) {
	for want, r := range map[string]Restore{
		"apparmor:web": {AppArmor: "web"}, "selinux:u:r:t:s0:c1,c2": {SELinux: "u:r:t:s0:c1,c2"}, "none:": {},
	} {
		dirs, err := openDirs(t.TempDir(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if got := r.request(dirs).GetOpts().GetLsmProfile(); got != want {
			t.Errorf("asked for %q, want %q", got, want)
		}
		closeFile(dirs[0])
		closeFile(dirs[1])
	}
}

// TestSessionEnds expects a session with a CRIU that hangs to end with its context.
func TestSessionEnds(t *testing.T) {
	s, err := Program{Path: "/none"}.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fd, err := unix.Dup(int(s.Socket().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = s.Run(ctx, Restore{Images: t.TempDir(), Work: t.TempDir()}, func(Event) error { return nil })
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v", err)
	}
}

func TestSetFilter(t *testing.T) {
	prog := []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}
	own := &seccomp.SeccompFilter{Filter: []byte("of the process"), Prev: to(uint32(0))}
	for name, test := range map[string]struct {
		filters []*seccomp.SeccompFilter
		ok      bool
	}{
		"one":           {[]*seccomp.SeccompFilter{{Filter: []byte("allow all")}}, true},
		"one on top":    {[]*seccomp.SeccompFilter{{Filter: []byte("allow all")}, own}, true},
		"none":          {nil, false},
		"none below":    {[]*seccomp.SeccompFilter{own}, false},
		"on top of all": {[]*seccomp.SeccompFilter{{Filter: []byte("a")}, {Filter: []byte("b"), Prev: to(uint32(9))}}, false},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, filterImage)
		if err := replaceImage(file, magicSeccomp, &seccomp.SeccompEntry{SeccompFilters: test.filters}); err != nil {
			t.Fatal(err)
		}

		err := SetFilter(t.Context(), dir, prog, 4)
		if !test.ok {
			if !errors.Is(err, ErrForbidden) {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		d, err := openImages(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		now, err := one[*seccomp.SeccompEntry](d, filterImage, magicSeccomp, maxLarge)
		d.close()
		if err != nil {
			t.Fatal(err)
		}
		if f := now.SeccompFilters[0]; string(f.Filter) != string(prog) || f.GetFlags() != 4 {
			t.Errorf("%s: the filter is %v", name, f)
		}
		if len(test.filters) > 1 && string(now.SeccompFilters[1].Filter) != "of the process" {
			t.Errorf("%s: the process's own filter is %v", name, now.SeccompFilters[1])
		}
	}
	if err := SetFilter(t.Context(), t.TempDir(), prog, 0); !errors.Is(err, ErrForbidden) {
		t.Errorf("no image: error %v", err)
	}
}

func TestVerifyMount(t *testing.T) {
	overlay := mountinfo.Info{Mountpoint: "/data", FSType: "overlay", Major: 0, Minor: 40, Root: "/", Options: "ro,nosuid,relatime"}
	proc := mountinfo.Info{Mountpoint: "/proc", FSType: "proc", Major: 0, Minor: 41, Root: "/", Options: "rw,nosuid,nodev,noexec"}

	for name, test := range map[string]struct {
		of     mountinfo.Info
		change func(*mountinfo.Info)
		says   string // "" if it is fine
	}{
		"the same":            {overlay, func(*mountinfo.Info) {}, ""},
		"fewer rights":        {overlay, func(m *mountinfo.Info) { m.Options += ",noexec" }, ""},
		"writable":            {overlay, func(m *mountinfo.Info) { m.Options = "rw,nosuid" }, "not ro"},
		"suid":                {overlay, func(m *mountinfo.Info) { m.Options = "ro" }, "not nosuid"},
		"another file system": {overlay, func(m *mountinfo.Info) { m.Minor = 9 }, "another file system"},
		"another directory":   {overlay, func(m *mountinfo.Info) { m.Root = "/etc" }, "shows /etc"},
		"its own procfs":      {proc, func(m *mountinfo.Info) { m.Minor = 99 }, ""},
		"the node's procfs":   {proc, func(*mountinfo.Info) {}, "not its own"},
		"part of its procfs":  {proc, func(m *mountinfo.Info) { m.Minor, m.Root = 99, "/sys" }, "shows /sys"},
	} {
		got := test.of
		test.change(&got)
		err := verifyMount(&got, &test.of)
		if test.says == "" && err != nil || test.says != "" && (!errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestVerifyCredentials(t *testing.T) {
	status := func(change map[string]string) map[string][]string {
		s := map[string][]string{
			"Uid": {"1000", "1000", "1000", "1000"}, "Gid": {"1000", "1000", "1000", "1000"}, "Groups": {"1000"},
			"CapInh": {"0"}, "CapPrm": {"0"}, "CapEff": {"0"}, "CapBnd": {"400"}, "CapAmb": {"0"}, "NoNewPrivs": {"1"}, "Seccomp": {"2"},
		}
		for key, value := range change {
			s[key] = strings.Fields(value)
		}
		return s
	}
	r := Restored{Spec: &specs.Spec{
		Process: &specs.Process{User: specs.User{UID: 1000, GID: 1000}, NoNewPrivileges: true},
		Linux:   &specs.Linux{Seccomp: &specs.LinuxSeccomp{}},
	}}
	bounding, _ := capability.Parse("CAP_NET_BIND_SERVICE")
	want := &expectation{bounding: bounding}

	for name, test := range map[string]struct {
		change map[string]string
		ok     bool
	}{
		"as asked for":         {nil, true},
		"fewer":                {map[string]string{"CapBnd": "0"}, true},
		"root":                 {map[string]string{"Uid": "1000 0 1000 1000"}, false},
		"saved root":           {map[string]string{"Uid": "1000 1000 0 1000"}, false},
		"group of root":        {map[string]string{"Gid": "0 0 0 0"}, false},
		"another group":        {map[string]string{"Groups": "1000 42"}, false},
		"more to gain":         {map[string]string{"CapBnd": "3ffffffffff"}, false},
		"what it may not have": {map[string]string{"CapPrm": "400"}, false},
		"inheritable":          {map[string]string{"CapInh": "400"}, false},
		"may gain":             {map[string]string{"NoNewPrivs": "0"}, false},
		"no filter":            {map[string]string{"Seccomp": "0"}, false},
		"strict mode":          {map[string]string{"Seccomp": "1"}, false},
		"malformed":            {map[string]string{"CapEff": "x"}, false},
		"missing":              {map[string]string{"CapEff": ""}, false},
	} {
		err := r.verifyCredentials(status(test.change), want)
		if (err == nil) != test.ok {
			t.Errorf("%s: error %v", name, err)
		}
	}

	// The kernel tells who they are on the node.
	r.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}
	r.Spec.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 400000, Size: 65536}}
	mapped := map[string]string{"Uid": "301000 301000 301000 301000", "Gid": "401000 401000 401000 401000", "Groups": "401000"}
	if err := r.verifyCredentials(status(mapped), want); err != nil {
		t.Errorf("in a user namespace: %v", err)
	}
	for key, value := range map[string]string{"Uid": "1000", "Gid": "301000", "Groups": "1000"} {
		change := maps.Clone(mapped)
		change[key] = value
		if err := r.verifyCredentials(status(change), want); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s %s in a user namespace: error %v", key, value, err)
		}
	}
}
