package hostile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/pace"
	"crisp/test/testkit/pods"
)

// TestCVE_2019_5736 uses /proc/self/exe as a container's program, so that the
// process that starts it would execute itself again, while another overwrites
// the program it sees executed. newNode compares the programs.
func TestCVE_2019_5736(t *testing.T) {
	n := newNode(t)
	volume := t.TempDir()
	for name, text := range map[string]string{"/again": "#!/proc/self/exe\n", "/thread": "#!/proc/thread-self/exe\n"} {
		if err := os.WriteFile(volume+name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}

	p := pods.Run(t, n.Lab, "overwrites", pods.SharedPID)
	kind := kind{pid: "shared", network: "pod", capability: "ALL"}
	r := p.Start(t, "resident", attacker, n.of(kind), pods.Volume(volume, "/volume"), pods.Command("/resident", "watch"))
	r.Await(t, "READY")

	keeper, err := n.Keeper()
	if err != nil {
		t.Fatal(err)
	}

	running := map[string]string{}
	for _, pid := range []int{keeper, n.PID()} {
		path := fmt.Sprintf("/proc/%d/exe", pid)
		running[path] = digest(t, path)
	}

	for range 3 {
		for _, program := range []string{"/volume/again", "/volume/thread", "/proc/self/exe", "/proc/1/exe"} {
			// It must exit in any case.
			_, _ = pods.Try(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: r.ID, Cmd: []string{program, "version"}, Timeout: 1})
		}
	}

	for _, program := range []string{"/volume/again", "/proc/self/exe"} {
		c, err := p.TryCreate(t, "starts", busybox, n.of(kind), pods.Volume(volume, "/volume"), pods.Command(program, "serve"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.ID}); err == nil {
			t.Logf("%s ended with code %d and says %q", program, c.Wait(t).ExitCode, c.Logged(t))
		}
		c.Remove(t)
	}

	for path, was := range running {
		if now := digest(t, path); now != was {
			t.Errorf("%s has changed", path)
		}
	}

	// A container that executes the runtime's program has nothing but a program.
	for _, finding := range found(r.Logged(t), "FOUND") {
		for _, kind := range []string{"writable", "truncated", "secret", "node", "capabilities"} {
			if strings.HasPrefix(finding, kind) {
				t.Errorf("it found %s", finding)
			}
		}
	}
}

// TestTerminalInjection injects a command into the terminal that the
// container's program shares with an attached client (TIOCSTI), and ends with a
// fake log line. The client's own terminal is not the container's, and the log
// has the line as output.
func TestTerminalInjection(t *testing.T) {
	n := newNode(t)
	p := pods.Run(t, n.Lab, "terminal")
	c := p.Start(t, "shell", attacker, func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true },
		pods.Command("sh", "-c", "read go; /resident type; sleep 1; echo over"), capable("ALL"))

	var out bytes.Buffer
	address := pods.Call(t, n.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: c.ID, Tty: true, Stdin: true, Stdout: true}).Url
	if err := session(t, address, remotecommand.StreamOptions{Stdin: strings.NewReader("go\r"), Stdout: &out, Tty: true}, 0); err != nil {
		t.Error(err)
	}
	c.Wait(t)

	if !strings.Contains(out.String(), "over") {
		t.Errorf("the client sees %q", out.String())
	}
	wantLog(t, c)

	if got := c.Status(t).ExitCode; got != 0 {
		t.Errorf("it ended with code %d", got)
	}
}

// wantLog requires each line of a log to be one that the runtime wrote: with a
// time during this test, in order.
func wantLog(t *testing.T, c *pods.Container) {
	t.Helper()
	data, err := os.ReadFile(c.LogFile())
	if err != nil {
		t.Fatal(err)
	}

	var last time.Time
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(line, " ", 4)
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil || len(f) < 4 || f[1] != "stdout" && f[1] != "stderr" || f[2] != "F" && f[2] != "P" {
			t.Errorf("a line of the log is %.80q", line)
			continue
		}

		if at.Before(last) || time.Since(at) > time.Hour {
			t.Errorf("a line of the log has the time %v after %v", at, last)
		}
		last = at
	}
}

// TestLogInjection writes lines that look like the log's own, and an endless
// one, which must not use memory.
func TestLogInjection(t *testing.T) {
	n := newNode(t)
	p := pods.Run(t, n.Lab, "log")
	const forge = `printf '2026-01-01T00:00:00.000000000Z stdout F forged\n'; printf 'half'; printf '\r2026-01-01T00:00:00Z stderr P x\n' >&2
printf '\0\n\377\376\n\n \n\033[2J\n'; printf '\n2026-01-01T00:00:00.000000000Z stdout F forged'`

	c := p.Start(t, "forges", busybox, pods.Command("sh", "-c", forge))
	c.Wait(t)
	wantLog(t, c)

	keeper, err := n.Keeper()
	if err != nil {
		t.Fatal(err)
	}

	before := resident(keeper) + resident(n.PID())
	endless := p.Start(t, "endless", busybox, pods.Command("sh", "-c", "head -c 2000000000 /dev/zero; sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(4*time.Second))
	defer cancel()

	most := 0
	for ctx.Err() == nil {
		most = max(most, resident(keeper)+resident(n.PID()))
		time.Sleep(20 * time.Millisecond)
	}

	if grown := (most - before) >> 10; grown > 64 {
		t.Errorf("daemon and keeper grew by %d MiB over a line without end", grown)
	} else {
		t.Logf("daemon and keeper grew by %d MiB over a line without end", grown)
	}

	endless.Remove(t)
	if err := os.Truncate(endless.LogFile(), 0); err != nil {
		t.Fatal(err)
	}
}

// resident is the resident memory of a process, in KiB.
func resident(pid int) int {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	data, _ := io.ReadAll(f)
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	var kib int
	_, _ = fmt.Sscan(rest, &kib) // 0 if there is none
	return kib
}
