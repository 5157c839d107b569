package launch

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit/pace"
)

// running starts a container that keeps running.
func (b *lab) running(change func(*specs.Spec)) (*started, *specs.Spec) {
	b.t.Helper()
	s := b.spec("")
	s.Process.Args = []string{"/bin/sleep", "1000"}
	if change != nil {
		change(s)
	}
	c, err := b.start(s, nil, Request{})
	if err != nil {
		b.t.Fatal(err)
	}
	return c, s
}

func (b *lab) execute(c *started, s *specs.Spec, args ...string) (string, int) {
	b.t.Helper()
	p := *s.Process
	p.Args = args
	e, err := b.exec(c, s, &p, Request{})
	if err != nil {
		b.t.Fatal(err)
	}
	return e.wait()
}

func TestExecJoinsEverything(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(o)
			c, s := b.running(nil)
			got, code := b.execute(c, s, "sh", "-c", "cd /proc; for n in user mnt net ipc uts pid cgroup; do [ $(readlink self/ns/$n) = $(readlink 1/ns/$n) ] || echo $n differs; done; tr '\\0' ' ' <1/cmdline; exit 7")
			if got != "/bin/sleep 1000 " || code != 7 {
				t.Errorf("executed process printed %q, exit code %d", got, code)
			}
		})
	}
}

func TestExecIdentity(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	c, s := b.running(func(s *specs.Spec) {
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 111, Hard: 222}}
	})

	p := *s.Process
	p.Rlimits = nil
	p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 5000}}
	p.NoNewPrivileges = true
	p.Args = []string{"sh", "-c", "id -u; id -G; ulimit -n; " + status("NoNewPrivs", "CapEff", "CapInh") + "; pwd"}
	p.Cwd = "/tmp"
	p.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
	p.Args[2] += "; grep Cpus_allowed_list /proc/self/status | cut -f2"

	e, err := b.exec(c, s, &p, Request{})
	if err != nil {
		t.Fatal(err)
	}

	want := "1000\n1001 5000\n111\nCapInh: 0000000000000000\nCapEff: 0000000000000000\nNoNewPrivs: 1\n/tmp\n0\n"
	if got, _ := e.wait(); got != want {
		t.Errorf("executed process printed\n%s\nwant\n%s", got, want)
	}
}

func TestExecInEndedContainer(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	c, err := b.start(b.spec("exit 0"), nil, Request{})
	if err != nil {
		t.Fatal(err)
	}
	c.wait()
	_, err = b.exec(c, b.spec(""), b.spec("").Process, Request{})
	if !errors.Is(err, unix.ESRCH) || !strings.Contains(err.Error(), "join namespaces") {
		t.Errorf("exec in an ended container: %v", err)
	}
}

// TestPrograms searches programs as a shell does, and reports what is wrong.
func TestPrograms(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	root := func() *os.File {
		return b.rootfs(func(upper string) {
			for name, mode := range map[string]os.FileMode{"plain": 0o644, "text": 0o755, "script": 0o755, "first/tool": 0o755, "second/tool": 0o755} {
				path := filepath.Join(upper, "opt", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}

				body := map[string]string{"plain": "#!/bin/sh\n", "text": "no program\n", "script": "#!/no/interpreter\n",
					"first/tool": "#!/bin/sh\necho first\n", "second/tool": "#!/bin/sh\necho second\n"}[name]
				if err := os.WriteFile(path, []byte(body), mode); err != nil {
					t.Fatal(err)
				}
			}
		})
	}

	tests := []struct {
		path, program, want string
		err                 error
	}{
		{"/nowhere:/opt/first:/opt/second", "tool", "first\n", nil},
		{"/opt/second:/opt/first", "tool", "second\n", nil},
		{"/bin", "/opt/first/tool", "first\n", nil},
		{"/bin", "opt/first/tool", "first\n", nil},
		{"/bin:/opt", "nope", `start container test: exec "nope": executable file not found in $PATH`, ErrNotFound},
		{"relative", "sh", `start container test: invalid runtime-spec: 0 directories in PATH to look for "sh"`, plan.ErrSpec},
		{"/bin", "/no/such", `start container test: exec "/no/such": executable file not found: no such file or directory`, ErrNotFound},
		{"/bin", "/opt/script", `start container test: exec "/opt/script": the interpreter of /opt/script is missing: executable file not found: no such file or directory`, ErrNotFound},
		{"/bin", "/opt/plain", `start container test: exec "/opt/plain": file is not executable: permission denied`, ErrNotExecutable},
		{"/bin", "/opt/text", `start container test: exec "/opt/text": file is not executable: exec format error`, ErrNotExecutable},
		{"/bin:/opt", "plain", `start container test: exec "plain": file is not executable: permission denied`, ErrNotExecutable},
		{"/opt:/bin", "plain", `start container test: exec "plain": file is not executable: permission denied`, ErrNotExecutable},
	}

	for _, tt := range tests {
		t.Run(tt.path+" "+tt.program, func(t *testing.T) {
			b := b.with(t)
			s := b.spec("")
			s.Process.Args, s.Process.Env = []string{tt.program}, []string{"PATH=" + tt.path}
			c, err := b.start(s, Held{"rootfs": root()}, Request{})
			if tt.err != nil {
				if !errors.Is(err, tt.err) || err.Error() != tt.want {
					t.Errorf("error %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}

			if got, _ := c.wait(); got != tt.want {
				t.Errorf("printed %q, want %q", got, tt.want)
			}
		})
	}
}

func TestExecProgramMissing(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	c, s := b.running(nil)
	p := *s.Process
	p.Args = []string{"nope"}
	_, err := b.exec(c, s, &p, Request{})
	if !errors.Is(err, ErrNotFound) || err.Error() != `exec in container test: exec "nope": executable file not found in $PATH` {
		t.Errorf("error %v", err)
	}
}

// conversation reads what a terminal shows until a mark.
func conversation(t testing.TB, tty *os.File, mark string) string {
	t.Helper()
	if err := unix.SetNonblock(int(tty.Fd()), true); err != nil {
		t.Fatal(err)
	}

	f := os.NewFile(uintptr(dup(t, tty)), "tty")
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(pace.Scale(30 * time.Second))); err != nil {
		t.Fatal(err)
	}

	var all bytes.Buffer
	chunk := make([]byte, 1024)
	for !strings.Contains(all.String(), mark) {
		n, err := f.Read(chunk)
		all.Write(chunk[:n])
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read terminal: %v after %q", err, all.String())
		}
	}

	return all.String()
}

func dup(t testing.TB, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestTerminal(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(o)
			script := "stty size; tty; stat -c '%F %u' /dev/console; [ $(stat -c %t:%T /dev/console) = $(stat -L -c %t:%T /proc/self/fd/0) ] && echo same; echo to-console >/dev/console; ps -o tty | tail -n1; read x; echo got $x; exec sleep 1000"
			s := b.spec(script)
			s.Process.User.UID = 1000
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 97, Height: 31}

			c, err := b.start(s, nil, Request{})
			if err != nil {
				t.Fatal(err)
			}

			first := conversation(t, c.Terminal, "to-console")
			if want := "31 97\r\n/dev/pts/0\r\ncharacter special file 1000\r\nsame\r\nto-console"; !strings.HasPrefix(first, want) {
				t.Errorf("terminal shows %q, want %q", first, want)
			}

			if _, err := c.Terminal.WriteString("line\n"); err != nil {
				t.Fatal(err)
			}
			conversation(t, c.Terminal, "got line")

			p := *s.Process
			p.Args = []string{"sh", "-c", "tty; stty size; exec sleep 1000"}
			e, err := b.exec(c, s, &p, Request{})
			if err != nil {
				t.Fatal(err)
			}

			if got := conversation(t, e.Terminal, "31 97"); !strings.HasPrefix(got, "/dev/pts/1\r\n") {
				t.Errorf("terminal of executed process shows %q", got)
			}

			// ^C sends a signal: the terminal is the session's controlling terminal.
			if _, err := e.Terminal.WriteString("\x03"); err != nil {
				t.Fatal(err)
			}
			if _, code := e.wait(); code != 128+int(unix.SIGINT) {
				t.Errorf("interrupted process has exit code %d", code)
			}
		})
	}
}
