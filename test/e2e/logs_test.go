package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

func TestLogs(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "streams", func(t *testing.T) {
		c := n.pod(t).start(t, sh("echo one; echo two >&2; echo; echo three"))
		c.wait(t)
		lines := parse(t, []byte(slurp(c.logFile())))
		if out, errs := text(lines, "stdout"), text(lines, "stderr"); out != "one\n\nthree\n" || errs != "two\n" {
			t.Errorf("got %q and %q", out, errs)
		}

		if path := c.status(t).LogPath; path != c.logFile() {
			t.Errorf("the status names the log %q, want %q", path, c.logFile())
		}
		c.remove(t)

		if _, err := os.Stat(c.logFile()); err != nil {
			t.Errorf("the log went with the container: %v", err)
		}
	})

	for name, test := range map[string]struct {
		script, want string
		lines        int
	}{
		"long line":          {`head -c 1048576 /dev/zero | tr '\0' x; echo`, strings.Repeat("x", 1<<20) + "\n", 64},
		"no newline":         {"echo -n first; echo; echo -n last", "first\nlast", 2},
		"bytes":              {`printf '\377\376\0\r\n\tx\n'`, "\xff\xfe\x00\r\n\tx\n", 2},
		"nothing":            {"true", "", 0},
		"just before an end": {"seq 5; exit 0", "1\n2\n3\n4\n5\n", 5},
	} {
		n.run(t, name, func(t *testing.T) {
			c := n.pod(t).start(t, sh(test.script))
			c.wait(t) // from here on the log is complete
			lines := parse(t, []byte(slurp(c.logFile())))
			if got := text(lines, ""); got != test.want || len(lines) != test.lines {
				t.Errorf("%d lines of log say %.100q, want %d that say %.100q", len(lines), got, test.lines, test.want)
			}
		})
	}

	n.run(t, "rotation", func(t *testing.T) { testRotation(t, n) })
	n.run(t, "failed rotation", func(t *testing.T) { testFailedRotation(t, n) })
	n.run(t, "no log path", func(t *testing.T) {
		c := n.pod(t).start(t, sh("head -c 1048576 /dev/zero; exit 3"), func(c *runtimeapi.ContainerConfig) { c.LogPath = "" })
		c.wantEnd(t, 3, "Error")
		if path := c.status(t).LogPath; path != "" {
			t.Errorf("the status names the log %q", path)
		}
	})

	n.run(t, "terminal", func(t *testing.T) {
		c := n.pod(t).start(t, sh("tty; echo err >&2"), func(c *runtimeapi.ContainerConfig) { c.Tty = true })
		c.wait(t)
		if got := c.logged(t); got != "/dev/pts/0\r\nerr\r\n" {
			t.Errorf("got %q", got)
		}
	})
}

// testRotation renames the log of a container that counts as fast as it can,
// as kubelet does, and checks for every line in the files.
func testRotation(t *testing.T, n *node) {
	const rotations = 5
	c := n.pod(t).start(t, sh("i=0; while :; do echo $i; i=$((i+1)); done"))
	var files []string
	for i := range rotations {
		old := fmt.Sprintf("%s.%d", c.logFile(), i)
		eventually(t, "the log grows", func() bool { return len(slurp(c.logFile())) > 1<<18 })
		if err := os.Rename(c.logFile(), old); err != nil {
			t.Fatal(err)
		}
		call(t, n.Runtime.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		files = append(files, slurp(old))
	}

	c.stop(t, 0)
	for i, was := range files {
		if now := slurp(fmt.Sprintf("%s.%d", c.logFile(), i)); now != was {
			t.Errorf("file %d grew after the log was reopened", i)
		}
	}

	files = append(files, slurp(c.logFile()))
	wantCount(t, parse(t, []byte(strings.Join(files, ""))))
}

// testFailedRotation cannot create the new file: the log continues in the old
// one, which can be renamed back.
func testFailedRotation(t *testing.T, n *node) {
	c := n.pod(t).start(t, sh("while :; do echo x; sleep 0.02; done"))
	eventually(t, "the log begins", func() bool { return slurp(c.logFile()) != "" })
	old := filepath.Join(t.TempDir(), "old")
	if err := os.Rename(c.logFile(), old); err != nil {
		t.Fatal(err)
	}

	if err := os.Mkdir(c.logFile(), 0o755); err != nil {
		t.Fatal(err)
	}
	request := &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}
	wantCode(t, failure(t, n.Runtime.ReopenContainerLog, request), codes.Internal, c.logFile())

	was := len(slurp(old))
	eventually(t, "the log continues", func() bool { return len(slurp(old)) > was })
	if err := os.Remove(c.logFile()); err != nil {
		t.Fatal(err)
	}
	call(t, n.Runtime.ReopenContainerLog, request)
}

// line is a line of a log in the format of the CRI.
type line struct {
	at      time.Time
	stream  string
	partial bool
	content string
}

var lineFormat = regexp.MustCompile(`(?s)^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)\n$`)

// parse reads a log and checks its format and the order of its times.
func parse(t *testing.T, data []byte) []line {
	t.Helper()
	var all []line
	for l := range strings.Lines(string(data)) {
		m := lineFormat.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("line %d of the log is not in the CRI's format: %.200q", len(all)+1, l)
		}

		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil {
			t.Fatal(err)
		}

		if len(all) > 0 && at.Before(all[len(all)-1].at) {
			t.Fatalf("line %d of the log is older than the one before", len(all)+1)
		}
		all = append(all, line{at, m[2], m[3] == "P", m[4]})
	}

	return all
}

// text joins the output to a stream, or to any if it is "".
func text(lines []line, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if stream != "" && l.stream != stream {
			continue
		}
		b.WriteString(l.content)
		if !l.partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// TestUnlimitedLogLines requires unsplit lines of a container, with a terminal
// and without, and one whose first half was read by a keeper that died.
func TestUnlimitedLogLines(t *testing.T) {
	n := newNode(t, lab.Options{Config: "max_container_log_line_size = -1\n"})
	const size = 3 << 20
	line := strings.Repeat("x", size) + "\n"
	p := n.pod(t)
	for name, tty := range map[string]bool{"plain": false, "terminal": true} {
		c := p.start(t, named(name), sh(fmt.Sprintf(`head -c %d /dev/zero | tr '\0' x; echo`, size)), func(c *runtimeapi.ContainerConfig) {
			c.Tty, c.LogPath = tty, name+".log"
		})
		c.wait(t)
		lines := parse(t, []byte(slurp(c.logFile())))
		if got := strings.ReplaceAll(text(lines, ""), "\r\n", "\n"); len(lines) != 1 || got != line {
			t.Errorf("%s: %d lines of log with %d bytes, want one with %d", name, len(lines), len(got), len(line))
		}
	}

	c := p.start(t, named("half"), sh(fmt.Sprintf(`head -c %d /dev/zero | tr '\0' x; touch /mnt/half; until [ -e /mnt/on ]; do sleep 0.05; done; head -c %d /dev/zero | tr '\0' x; echo`, size/2, size/2)),
		mount(t.TempDir(), "/mnt"), func(c *runtimeapi.ContainerConfig) { c.LogPath = "half.log" })
	host := c.cfg.Mounts[0].HostPath
	eventually(t, "half of the line", func() bool { _, err := os.Stat(filepath.Join(host, "half")); return err == nil })
	n.killKeeper(t)
	if err := os.WriteFile(filepath.Join(host, "on"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	c.wait(t)
	lines := parse(t, []byte(slurp(c.logFile())))
	if got := text(lines, ""); len(lines) != 1 || got != line {
		t.Errorf("over a keeper's end: %d lines of log with %d bytes, want one with %d", len(lines), len(got), len(line))
	}
}
