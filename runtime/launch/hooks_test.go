package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/test/testkit/pace"
)

// hookLab runs the hooks of a lab's containers.
type hookLab struct {
	*lab
	// dir is the directory that all hooks can write to, state the one that is
	// covered by the bundle.
	dir, state string
}

func newHookLab(b *lab) *hookLab {
	b.t.Helper()
	h := &hookLab{lab: b, dir: b.open("crisp-hooks-"), state: b.open("crisp-state-")}
	must(b.t, os.WriteFile(filepath.Join(h.state, "secret"), []byte("x"), 0o600))
	return h
}

// open is a directory that users of a user namespace reach and can write to.
func (b *lab) open(name string) string {
	b.t.Helper()
	dir, err := os.MkdirTemp("", name)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { os.RemoveAll(dir) })
	must(b.t, unix.Chmod(dir, 0o777))
	return dir
}

// hooks is how the lab runs the hooks of a spec.
func (h *hookLab) hooks(s *specs.Spec) *Hooks {
	return &Hooks{
		Container: hook.Container{ID: "test", Spec: s, Bundle: filepath.Join(h.state, "hooks", "test")},
		Dir:       h.state, Run: h.runHook,
	}
}

// runHook runs a hook as the daemon does.
func (h *hookLab) runHook(ctx context.Context, _ hook.Hook, r client.Request, _ func() string) (client.Exit, error) {
	r.ID = "hook"
	s, err := h.k.Start(ctx, r)
	if err != nil {
		return client.Exit{}, err
	}
	defer s.Close()

	exited := make(chan client.Exit, 1)
	go func() {
		ws := reap(s.Pid)
		if ws.Signaled() {
			exited <- client.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
			return
		}
		exited <- client.Exit{Code: ws.ExitStatus()}
	}()
	return AwaitHook(ctx, s, exited)
}

// add gives a spec a hook that runs a shell script.
func add(s *specs.Spec, k hook.Kind, script string, env ...string) {
	hook.Add(s, nil, hook.Hook{Kind: k, Hook: specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: env}})
}

func (h *hookLab) begin(s *specs.Spec, r Request) (*started, error) {
	h.t.Helper()
	r.Hooks = h.hooks(s)
	return h.start(s, nil, r)
}

func (h *hookLab) read(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.dir, name))
	if err != nil {
		h.t.Error(err)
	}
	return string(data)
}

// labs are the kinds of pods, by their names.
func labs() map[string]func(*testing.T) *lab {
	return map[string]func(*testing.T) *lab{
		"plain":                       func(t *testing.T) *lab { b := newLab(t); b.sandbox(usual()); return b },
		"user namespace":              func(t *testing.T) *lab { b := newLab(t); b.sandbox(usersOwn()); return b },
		"shared PIDs":                 func(t *testing.T) *lab { return newSharing(t, false) },
		"shared PIDs, user namespace": func(t *testing.T) *lab { return newSharing(t, true) },
	}
}

// TestHookOrder runs hooks of all kinds that a start has, each of which checks
// what it finds and notes that it ran.
func TestHookOrder(t *testing.T) {
	for name, make := range labs() {
		t.Run(name, func(t *testing.T) {
			h := newHookLab(make(t))
			s := h.spec("cat /order /mounted/file; echo program")
			if h.pod["ns/pid"] != nil {
				setNamespace(s, specs.PIDNamespace, "ns/pid")
			}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Root.Readonly = true

			env := "DIR=" + h.dir
			note := `echo KIND >>$DIR/order; chmod 666 $DIR/order; cat >$DIR/KIND.state; pwd >$DIR/KIND.cwd; /bin/ls -l /proc/self/fd | grep -c '[012] -> ' >$DIR/KIND.fds
				id -u >$DIR/KIND.id; readlink /proc/self/ns/mnt >$DIR/KIND.mnt; readlink /proc/self/ns/net >$DIR/KIND.net; env >$DIR/KIND.env`
			for _, k := range []hook.Kind{hook.Prestart, hook.CreateRuntime} {
				add(s, k, strings.ReplaceAll(note, "KIND", string(k))+`
					root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' $(sed 's/.*"bundle":"\([^"]*\)".*/\1/' $DIR/`+string(k)+`.state)/config.json)
					test -x $root/bin/busybox || { echo no root at $root >&2; exit 1; }`, env)
			}
			add(s, hook.CreateContainer, strings.ReplaceAll(note, "KIND", "createContainer")+`
				bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' $DIR/createContainer.state)
				root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' $bundle/config.json)
				test $root = $bundle/rootfs -a -x $root/bin/busybox || { echo no root at $root >&2; exit 1; }
				test ! -e `+h.state+`/secret || { echo sees the state >&2; exit 1; }
				cp $DIR/order $root/order && mkdir $root/mounted && mount -t tmpfs none $root/mounted && echo mounted >$root/mounted/file`, env)
			add(s, hook.StartContainer, `test "$(id -u)" = 1000 -a "$X" = y -a -z "$HOME" || exit 1; exec 2>/dev/null; touch /nope && exit 2
				grep -q 'CapEff:	0000000000000000' /proc/self/status || exit 3; test -r /order`, "X=y", "PATH=/bin")

			c, err := h.begin(s, Request{})
			if err != nil {
				t.Fatal(err)
			}
			if out, code := c.wait(); code != 0 || out != "prestart\ncreateRuntime\ncreateContainer\nmounted\nprogram\n" {
				t.Errorf("the container printed %q, code %d", out, code)
			}
			h.checkHooks(s)
		})
	}
}

// checkHooks checks what the hooks of TestHookOrder noted.
func (h *hookLab) checkHooks(s *specs.Spec) {
	h.t.Helper()
	host := func(ns string) string {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		must(h.t, err)
		return link + "\n"
	}
	for _, k := range []string{"prestart", "createRuntime", "createContainer"} {
		inside := k == "createContainer"
		for what, want := range map[string]string{"cwd": "/\n", "fds": "3\n", "id": "0\n"} {
			if got := h.read(k + "." + what); got != want {
				h.t.Errorf("%s of %s hook is %q, want %q", what, k, got, want)
			}
		}

		for _, ns := range []string{"mnt", "net"} {
			if got := h.read(k + "." + ns); (got == host(ns)) == inside {
				h.t.Errorf("%s namespace of %s hook is %q, the host's is %q", ns, k, got, host(ns))
			}
		}
		for line := range strings.Lines(h.read(k + ".env")) {
			if name, _, _ := strings.Cut(line, "="); !slices.Contains([]string{"DIR", "PWD", "SHLVL", "_", "OLDPWD"}, name) {
				h.t.Errorf("%s hook has %q in its environment", k, line)
			}
		}
		if got := h.read(k + ".state"); !strings.Contains(got, `"status":"creating"`) || !strings.Contains(got, `"id":"test"`) {
			h.t.Errorf("state for %s hook: %s", k, got)
		}
		if own := s.Linux.Namespaces[1] == (specs.LinuxNamespace{Type: specs.PIDNamespace}); own && inside != strings.Contains(h.read(k+".state"), `"pid":1,`) {
			h.t.Errorf("pid for %s hook: %s", k, h.read(k+".state"))
		}
	}
}

// TestHookFails checks the errors of hooks of each kind, and that none leaves
// anything.
func TestHookFails(t *testing.T) {
	second := 1
	tests := map[string]struct {
		hook specs.Hook
		want []string
	}{
		"exit":           {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "yes noise | head -n 100000 >&2; echo broken >&2; exit 3"}}, []string{"exit code 3", "broken"}},
		"signal":         {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "kill -9 $$"}}, []string{"signal 9 (SIGKILL)"}},
		"loops":          {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 1000 & echo begun; while :; do :; done"}, Timeout: &second}, []string{"killed after 1s", "begun"}},
		"missing":        {specs.Hook{Path: "/no/such/hook"}, []string{"exec /no/such/hook", "no such file"}},
		"closes stdin":   {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "exec <&-; exit 4"}}, []string{"exit code 4"}},
		"floods":         {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "while echo noise; do :; done; sleep 100"}, Timeout: &second}, []string{"killed after 1s", "noise"}},
		"stops":          {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo begun; kill -STOP $$"}, Timeout: &second}, []string{"killed after 1s", "begun"}},
		"ignores all":    {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "trap '' TERM INT HUP QUIT PIPE USR1; echo begun; while :; do :; done"}, Timeout: &second}, []string{"killed after 1s", "begun"}},
		"changes itself": {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cd /tmp; ulimit -f 0; ulimit -n 4; umask 777; exec sh -c 'exit 6'"}}, []string{"exit code 6"}},
		"eats its input": {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; cat >/dev/null; echo x 1>&0 && exit 1; exit 7"}}, []string{"exit code 7"}},
		"output closed":  {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "exec >&- 2>&-; exit 5"}}, []string{"exit code 5"}},
	}
	for name, tt := range tests {
		for _, k := range []hook.Kind{hook.CreateRuntime, hook.CreateContainer, hook.StartContainer} {
			t.Run(name+" "+string(k), func(t *testing.T) {
				b := newLab(t)
				b.sandbox(usual())
				h := newHookLab(b)
				s := h.spec("echo ran")
				hook.Add(s, nil, hook.Hook{Kind: k, Hook: tt.hook})
				begin := time.Now()

				_, err := h.begin(s, Request{})
				if err == nil {
					t.Fatal("the container started")
				}
				for _, part := range append(tt.want, string(k)+" hook "+tt.hook.Path) {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q lacks %q", err, part)
					}
				}
				if !errors.Is(err, hook.ErrFailed) || len(err.Error()) > 3*tailSize {
					t.Errorf("error %v", err)
				}
				if took := time.Since(begin); took > pace.Scale(10*time.Second) {
					t.Errorf("took %v", took)
				}
			})
		}
	}
}

// TestHookLeavesProcess has a hook leave a process with its output open: the
// start does not wait for that one.
func TestHookLeavesProcess(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	h := newHookLab(b)
	s := h.spec("echo ran")
	add(s, hook.CreateContainer, "sleep 20 &")
	begin := time.Now()
	c, err := h.begin(s, Request{})
	if err != nil {
		t.Fatal(err)
	}
	if out, code := c.wait(); out != "ran\n" || code != 0 {
		t.Errorf("printed %q, code %d", out, code)
	}
	if took := time.Since(begin); took > pace.Scale(5*time.Second) {
		t.Errorf("took %v", took)
	}
}

// TestHookLeavesItsGroup has a hook that is late leave a process that is not in its
// group and holds its output: the start ends when the hook's time is over, and what
// was in the container's namespaces is gone with it.
func TestHookLeavesItsGroup(t *testing.T) {
	second := 1
	for _, k := range []hook.Kind{hook.CreateRuntime, hook.CreateContainer, hook.StartContainer} {
		t.Run(string(k), func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			h := newHookLab(b)
			s := h.spec("echo ran")
			shell, mark := "/bin/sh", "4357"
			script := fmt.Sprintf("setsid sh -c 'trap \"\" TERM; exec sleep %s' & echo begun; while :; do :; done", mark)
			hook.Add(s, nil, hook.Hook{Kind: k, Hook: specs.Hook{Path: shell, Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin"}, Timeout: &second}})
			begin := time.Now()
			if _, err := h.begin(s, Request{}); !errors.Is(err, hook.ErrFailed) || !strings.Contains(err.Error(), "killed after 1s: begun") {
				t.Errorf("error %v", err)
			}
			if took := time.Since(begin); took > pace.Scale(10*time.Second) {
				t.Errorf("took %v", took)
			}

			left := sleepers(t, mark)
			for _, pid := range left {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Error(err)
				}
			}
			// One of the node's programs may leave what it likes.
			if len(left) > 0 && k.InContainer() {
				t.Errorf("processes %v are left of a hook in the container's namespaces", left)
			}
		})
	}
}

// sleepers are the processes of this test that sleep for so many seconds.
func sleepers(t *testing.T, seconds string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || string(data) != "sleep\x00"+seconds+"\x00" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		must(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// TestHookInBundle runs hooks for an OCI bundle.
func TestHookInBundle(t *testing.T) {
	for name, userns := range map[string]bool{"plain": false, "own user namespace": true} {
		t.Run(name, func(t *testing.T) {
			h := newHookLab(newLab(t))
			s := bundleIn(t, "cat /made")
			s.Root.Readonly = true
			if userns {
				setNamespace(s, specs.UserNamespace, "")
				s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 0, Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
			}

			add(s, hook.CreateContainer, fmt.Sprintf("echo made >%s/hooks/test/rootfs/made", h.state))
			r := Request{Spec: s, Hooks: h.hooks(s)}
			h.show(&r)
			c, err := h.launch(r, h.l.Container)
			if err != nil {
				t.Fatal(err)
			}
			if out, code := c.wait(); out != "made\n" || code != 0 {
				t.Errorf("printed %q, code %d", out, code)
			}
		})
	}
}

// TestHooksAfterTheStart runs poststart and poststop hooks: all of a kind,
// whatever becomes of the others.
func TestHooksAfterTheStart(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	h := newHookLab(b)
	s := h.spec("cat")
	for _, k := range []hook.Kind{hook.Poststart, hook.Poststop} {
		add(s, k, "exit 7")
		add(s, k, fmt.Sprintf("cat >%s/%s", h.dir, k))
	}

	hs := h.hooks(s)
	for k, want := range map[hook.Kind]string{hook.Poststart: `"status":"running","pid":4242`, hook.Poststop: `"status":"stopped","bundle"`} {
		err := h.l.RunHooks(t.Context(), hs, k, 4242)
		if !errors.Is(err, hook.ErrFailed) || !strings.Contains(err.Error(), "exit code 7") {
			t.Errorf("%s: error %v", k, err)
		}
		if got := h.read(string(k)); !strings.Contains(got, want) {
			t.Errorf("state for %s hook is %s, want %s", k, got, want)
		}
	}
}

// TestWaitingIsUnprivileged examines the process of a container whose
// startContainer hook, a program of the image, runs: it has no more than the
// hook by then.
func TestWaitingIsUnprivileged(t *testing.T) {
	for name, make := range labs() {
		t.Run(name, func(t *testing.T) {
			h := newHookLab(make(t))
			s := h.spec("echo ran")
			if h.pod["ns/pid"] != nil {
				setNamespace(s, specs.PIDNamespace, "ns/pid")
			}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}
			add(s, hook.StartContainer, "exit 0", "PATH=/bin")
			seen := 0
			h.k.asked = func(w client.Waiting) {
				seen++
				for field, want := range map[string]string{"CapPrm": "0000000000000000", "CapBnd": "0000000000000001"} {
					if got := statusOf(t, w.Pid, field); got != want {
						t.Errorf("%s is %s, want %s", field, got, want)
					}
				}
				fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.Pid))
				if err != nil || len(fds) != 4 {
					t.Errorf("descriptors %v, %v: want the standard ones and a socket", fds, err)
				}
				if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/bin/busybox", w.Pid)); err != nil {
					t.Error(err)
				}
				// The owner of its files is root as long as it is not dumpable.
				if st, err := os.Stat(fmt.Sprintf("/proc/%d/fd", w.Pid)); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 && h.pod["ns/user"] == nil {
					t.Errorf("it can be traced: %v, %v", st, err)
				}
			}

			c, err := h.begin(s, Request{})
			if err != nil {
				t.Fatal(err)
			}
			if out, code := c.wait(); out != "ran\n" || code != 0 || seen != 1 {
				t.Errorf("printed %q, code %d, %d hooks", out, code, seen)
			}
		})
	}
}
