package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// startFailures are containers that cannot be started. The error names the
// problem and the path.
var startFailures = []struct {
	name   string
	change change
	says   []string
}{
	{"missing command", command("/nope"), []string{"/nope", "no such file"}},
	{"command that is not in the path", command("nope"), []string{"nope", "not found in $PATH"}},
	{"file that is not executable", command("/etc/passwd"), []string{"/etc/passwd", "permission denied"}},
	{"directory as a command", command("/etc"), []string{"/etc", "permission denied"}},
	{"script without an interpreter", command("/mnt/script"), []string{"/mnt/script", "no such file"}},
	{"program of another format", command("/mnt/garbage"), []string{"/mnt/garbage", "exec format error"}},
	{"working directory that is a file", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, []string{"/etc/passwd", "not a directory"}},
	{"too little memory", func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 4096 }, []string{"memory limit of 4096 bytes is too small"}},
	{"mount of a directory on a file", mount("/etc", "/etc/passwd"), []string{"/etc/passwd", "a directory cannot be mounted on a file"}},
}

// createFailures are containers that cannot be created.
var createFailures = []struct {
	name   string
	change change
	says   []string
}{
	{"mount source that cannot be made", mount("/proc/does/not/exist", "/mnt"), []string{"/proc/does", "no such file"}},
	{"too long an argument", command("/bin/echo", strings.Repeat("x", 200_000)), []string{"argument", "200000 bytes", "131071"}},
	{"unknown user", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" }, []string{"nobody-knows"}},
	{"missing seccomp profile", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/nope.json"}
	}, []string{"/nope.json"}},
	{"missing device", func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/nope", ContainerPath: "/dev/nope", Permissions: "r"}}
	}, []string{"/dev/nope"}},
}

func command(args ...string) change {
	return func(c *runtimeapi.ContainerConfig) { c.Command = args }
}

// TestMissingHostPath has a missing host path created as a directory, as system
// pods expect (flannel's /run/flannel, log collectors' /var/lib/docker).
func TestMissingHostPath(t *testing.T) {
	n := newNode(t, lab.Options{})
	path := filepath.Join(t.TempDir(), "missing", "path")
	c := n.pod(t).start(t, mount(path, "/mnt"))
	c.sh(t, "echo there > /mnt/file")

	st, err := os.Stat(path)
	if err != nil || !st.IsDir() || st.Mode().Perm() != 0o755 {
		t.Errorf("the host path is %v, %v", st, err)
	}

	if got := slurp(filepath.Join(path, "file")); got != "there\n" {
		t.Errorf("the file has %q", got)
	}
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("/nowhere/at/all", dir+"/dangling"), os.Symlink("loop", dir+"/loop"), os.WriteFile(dir+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}

	p := n.pod(t)
	for _, bad := range []string{"/dangling", "/dangling/below", "/loop", "/file/below"} {
		r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(named("bad"), mount(dir+bad, "/mnt")), SandboxConfig: p.cfg}
		wantCode(t, failure(t, n.Runtime.CreateContainer, r), codes.FailedPrecondition, dir+bad)
	}
}

func TestStartFailures(t *testing.T) {
	n := newNode(t, lab.Options{})
	dir := t.TempDir()
	for name, content := range map[string]string{"script": "#!/no/interpreter\n", "garbage": "\x7fELF garbage"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}

	p := n.pod(t)
	for _, c := range startFailures {
		n.run(t, c.name, func(t *testing.T) {
			failing := p.create(t, named("failing"), mount(dir, "/mnt"), c.change)
			err := failure(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: failing.id})
			if err == nil {
				t.Error("it started")
			}

			st := failing.status(t)
			for _, part := range c.says {
				if text := status.Convert(err).Message(); !strings.Contains(text, part) || !strings.Contains(st.Message, part) {
					t.Errorf("the error is %q and the status says %q: want both to say %q", text, st.Message, part)
				}
			}

			if !strings.HasPrefix(st.Message, "start container failing: ") || strings.Count(st.Message, "failing") != 1 {
				t.Errorf("the message does not begin with what failed: %s", st.Message)
			}
			if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" || st.ExitCode != 128 || st.FinishedAt == 0 || st.StartedAt == 0 {
				t.Errorf("the container is %v: %v", st.State, st)
			}
			failing.remove(t)
		})
	}

	for _, c := range createFailures {
		n.run(t, c.name, func(t *testing.T) {
			r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(named("refused"), c.change), SandboxConfig: p.cfg}
			wantCode(t, failure(t, n.Runtime.CreateContainer, r), codes.InvalidArgument, c.says...)
		})
	}

	n.run(t, "the pod works still", func(t *testing.T) {
		if got := p.output(t, "echo well"); got != "well\n" {
			t.Errorf("got %q", got)
		}
	})
}
