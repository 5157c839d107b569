package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/pace"
)

// testKeeperKilledUnderCommands kills the keeper under commands of every kind.
// They continue, and their callers get all of the output and the exit code. It
// returns the container, which is removed.
func testKeeperKilledUnderCommands(t *testing.T, n *node) *container {
	dir := t.TempDir()
	p := n.pod(t)
	c := p.start(t, mount(dir, "/signal"))
	const wait = "echo before; touch /signal/%s; until [ -e /signal/go ]; do sleep 0.02; done; "
	results := map[string]<-chan string{
		"plain":  begin(func() string { return execSync(t, c, fmt.Sprintf(wait, "plain")+"echo after; echo err >&2; exit 7") }),
		"killed": begin(func() string { return execSync(t, c, fmt.Sprintf(wait, "killed")+"kill -9 $$") }),
		"fails":  begin(func() string { return execSync(t, c, fmt.Sprintf(wait, "fails")+"exit 255") }),
		"late":   begin(func() string { return execLate(t, c, fmt.Sprintf(wait, "late")+"sleep 1001") }),
	}

	for _, tty := range []bool{false, true} {
		name := fmt.Sprintf("session%v", tty)
		results[name] = begin(func() string { return execSession(t, c, tty, fmt.Sprintf(wait, name)+"read x; echo got $x; exit 9") })
	}

	for name := range results {
		eventually(t, "the command "+name+" runs", func() bool { return exists(dir, name) })
	}
	n.killKeeper(t)
	n.killKeeper(t) // and the one that took over from the first
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	for name, want := range map[string]string{
		"plain": "before\nafter\n|err\n|7", "killed": "before\n||137", "fails": "before\n||255",
		"late": "DeadlineExceeded", "sessionfalse": "before\ngot it\n|9", "sessiontrue": "before\r\nit\r\ngot it\r\n|9",
	} {
		if got := <-results[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}

	eventually(t, "the command that took too long is gone", func() bool { return c.sh(t, "ps | grep '[s]leep 1001' | wc -l") == "0" })
	// Unreaped processes do not block the container.
	began := time.Now()
	p.remove(t)

	if took := time.Since(began); took > pace.Scale(5*time.Second) {
		t.Errorf("the pod took %v to end", took)
	}
	return c
}

func exists(parts ...string) bool {
	_, err := os.Stat(filepath.Join(parts...))
	return err == nil
}

// begin runs f in the background.
func begin[T any](f func() T) <-chan T {
	result := make(chan T, 1)
	go func() { result <- f() }()
	return result
}

// execSync runs a script and describes the whole result.
func execSync(t *testing.T, c *container, script string) string {
	r, err := try(t, c.p.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", script}})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s|%s|%d", r.Stdout, r.Stderr, r.ExitCode)
}

// execLate runs a script that takes too long, with time enough for its start
// next to others.
func execLate(t *testing.T, c *container, script string) string {
	limit := int64(pace.Scale(4 * time.Second).Seconds())
	_, err := try(t, c.p.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", script}, Timeout: limit})
	if code := status.Code(err); code != codes.DeadlineExceeded {
		return err.Error()
	}
	return codes.DeadlineExceeded.String()
}

// execSession runs a script in a session, and types "it" a while after its
// start.
func execSession(t *testing.T, c *container, tty bool, script string) string {
	in, typed := io.Pipe()
	defer typed.Close()
	var out bytes.Buffer
	o := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: tty}
	r, err := try(t, c.p.n.Runtime.Exec, &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", script}, Tty: tty, Stdin: true, Stdout: true})
	if err != nil {
		return err.Error()
	}

	go func() {
		for !exists(c.cfg.Mounts[0].HostPath, "go") {
			time.Sleep(20 * time.Millisecond)
		}
		fmt.Fprintln(typed, "it")
	}()

	err = dialer(dialSPDY).session(t, r.Url, o)
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) {
		return fmt.Sprint(out.String(), " and ", err)
	}
	return fmt.Sprintf("%s|%d", out.String(), exit.Code)
}

// testKeeperKilledUnderAttached kills the keeper under a client that talks to a
// container.
func testKeeperKilledUnderAttached(t *testing.T, n *node) {
	p := n.pod(t)
	for _, tty := range []bool{false, true} {
		c := p.start(t, named(fmt.Sprint("tty", tty)), sh("while read x; do echo got $x; done; exit 6"), func(c *runtimeapi.ContainerConfig) {
			c.Stdin, c.StdinOnce, c.Tty = true, true, tty
		})
		in, typed := io.Pipe()
		heard, hear := io.Pipe()
		o := remotecommand.StreamOptions{Stdin: in, Stdout: hear, Tty: tty}
		u := c.attachURL(t, o)
		ended := begin(func() error { defer hear.Close(); return dialer(dialSPDY).session(t, u, o) })
		lines := bufio.NewScanner(heard)
		for i := range 4 {
			fmt.Fprintf(typed, "%d\n", i)
			for want := fmt.Sprint("got ", i); lines.Text() != want; {
				if !lines.Scan() {
					t.Fatalf("the session ended before it said %q: %v", want, <-ended)
				}
			}
			n.killKeeper(t)
			time.Sleep(pace.Scale(200 * time.Millisecond)) // the client must be reconnected
		}

		if tty {
			fmt.Fprint(typed, "\x04")
		}
		typed.Close()

		for lines.Scan() {
			t.Errorf("the session says %q at its end", lines.Text())
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		c.wantEnd(t, 6, "Error")
	}
}
