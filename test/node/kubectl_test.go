//go:build node

package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"crisp/test/testkit/pace"
)

// shell is a pod to run kubectl's commands on.
const shell = `
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- {name: main, image: AGNHOST, args: [netexec]}
	- {name: cat, image: BUSYBOX, command: [sh, -c, "while read line; do echo got $line; done; sleep 1000"], stdin: true}
`

func execCommand(s *space) {
	s.apply(shell)
	s.waitReady("pod")
	ctx, cancel := s.context()
	defer cancel()

	out, err := s.Kubectl(ctx, "from outside", "-n", s.name, "exec", "-i", "pod", "-c", "main", "--", "sh", "-c", "cat; echo complaint >&2; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "complaint") {
		s.Errorf("got %v, want status 7 and the complaint", err)
	}

	if out != "from outside" {
		s.Errorf("got %q on standard output", out)
	}
	if big := s.execBig("head -c 5000000 /dev/zero"); len(big) != 5000000 {
		s.Errorf("got %d bytes of 5000000", len(big))
	}

	if _, err := s.try("exec", "pod", "-c", "main", "--", "/no/such/program"); err == nil || !strings.Contains(err.Error(), "no such file") {
		s.Errorf("a program that is not there: %v", err)
	}

	// script gives kubectl a terminal, so that the container gets one too.
	cmd, err := s.Command(ctx, "-n", s.name, "exec", "-it", "pod", "-c", "main", "--", "sh", "-c", "until stty size | grep 99; do sleep 0.1; done; tty")
	if err != nil {
		s.Fatal(err)
	}

	typed := exec.CommandContext(ctx, "script", "-qec", "stty rows 33 cols 99; "+strings.Join(quoted(cmd.Args), " "), "/dev/null")
	typed.Env = cmd.Env
	text, err := typed.CombinedOutput()
	if err != nil {
		s.Errorf("exec -it: %v: %s", err, text)
	}
	s.expect("a terminal", string(text), "33 99", "/dev/pts/")
}

// execBig runs a command with much output. The API server closes the connection
// to kubectl right after the last byte: a slow reader whose ping is sent just
// then loses the end, so it may retry.
func (s *space) execBig(command string) string {
	s.Helper()
	for range 4 {
		out, err := s.try("exec", "pod", "-c", "main", "--", "sh", "-c", command)
		if err == nil {
			return out
		}
		if !strings.Contains(err.Error(), "websocket: close 1006") {
			s.Fatal(err)
		}
		s.Log(err)
	}
	s.Fatal("kubectl lost the connection each time")
	return ""
}

func quoted(words []string) []string {
	var all []string
	for _, w := range words {
		all = append(all, "'"+w+"'")
	}
	return all
}

func attach(s *space) {
	s.apply(shell)
	s.waitReady("pod")
	ctx, cancel := context.WithTimeout(s.Context(), pace.Scale(30*time.Second))
	defer cancel()

	cmd, err := s.Command(ctx, "-n", s.name, "attach", "-i", "pod", "-c", "cat")
	if err != nil {
		s.Fatal(err)
	}

	in, err := cmd.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}

	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, word := range []string{"one", "two"} {
		fmt.Fprintln(in, word)
		if lines.Scan(); lines.Text() != "got "+word {
			s.Errorf("got %q, want %q: %v", lines.Text(), "got "+word, lines.Err())
		}
	}
	cancel()
	_ = cmd.Wait() // it was killed
	s.expect("the log", s.kubectl("logs", "pod", "-c", "cat"), "got one\ngot two\n")
}

func copying(s *space) {
	s.apply(shell)
	s.waitReady("pod")
	dir := s.TempDir()
	want := bytes.Repeat([]byte("crisp\n"), 500_000)
	if err := os.MkdirAll(filepath.Join(dir, "in", "sub"), 0o755); err != nil {
		s.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(dir, "in", "sub", "file"), want, 0o644); err != nil {
		s.Fatal(err)
	}
	s.kubectl("cp", filepath.Join(dir, "in"), "pod:/tmp/", "-c", "cat")
	s.kubectl("cp", "pod:/tmp/in", filepath.Join(dir, "out"), "-c", "cat")

	if got, err := os.ReadFile(filepath.Join(dir, "out", "sub", "file")); err != nil || !bytes.Equal(got, want) {
		s.Errorf("the copy differs: %d bytes of %d, %v", len(got), len(want), err)
	}
}

func portForward(s *space) {
	s.apply(shell)
	s.waitReady("pod")
	ctx, cancel := s.context()
	defer cancel()

	cmd, err := s.Command(ctx, "-n", s.name, "port-forward", "pod/pod", ":8080")
	if err != nil {
		s.Fatal(err)
	}

	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	port, _, found := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " ->")
	if err != nil || !found {
		s.Fatalf("got %q, %v", line, err)
	}

	for range 20 {
		if page, err := fetch("http://" + port + "/hostname"); err != nil || page != "pod" {
			s.Fatalf("through the port: got %q, %v", page, err)
		}
	}
	cancel()
	_ = cmd.Wait() // it was killed
}

func debug(s *space) {
	s.apply(shell)
	s.waitReady("pod")
	s.kubectl("debug", "pod", "--image="+busybox, "--target=main", "-c", "looker", "--profile=general", "--", "sh", "-c", "ps; ls /proc/1/root/agnhost; sleep 1000")
	s.eventually("it looks at its target", s.holds("/proc/1/root/agnhost", "logs", "pod", "-c", "looker"))
	log := s.kubectl("logs", "pod", "-c", "looker")
	s.expect("processes", log, "/agnhost netexec")
	if strings.Contains(log, "while read line") {
		s.Errorf("it sees a container that is not its target:\n%s", log)
	}
}

// logs follows a log across its rotation: no line may be lost or repeated. The
// last one is written after the rotation: kubectl looks for it in the current
// file.
func logs(s *space) {
	const last = 15000
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
	restartPolicy: Never
	containers: [{name: main, image: BUSYBOX, command: [sh, -c, "echo line 0 of; until [ -e /go ]; do sleep 0.1; done; i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i of many that together are longer than one file may be; [ $((i%%100)) != 0 ] || sleep 0.1; done; sleep 8; echo line %d of"]}]
`, last-1, last))

	s.wait("jsonpath={.status.containerStatuses[0].started}=true", "pod/pod")
	ctx, cancel := s.context()
	defer cancel()
	cmd, err := s.Command(ctx, "-n", s.name, "logs", "-f", "pod")
	if err != nil {
		s.Fatal(err)
	}

	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	n := -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n++; !strings.HasPrefix(lines.Text(), fmt.Sprintf("line %d of", n)) {
			s.Errorf("got %q in place of line %d", lines.Text(), n)
			break
		}
		if n == 0 { // it is followed, so it may run long
			s.kubectl("exec", "pod", "--", "touch", "/go")
		}
	}

	if err := errors.Join(out.Close(), cmd.Wait()); err != nil {
		s.Errorf("kubectl logs -f: %v", err)
	}
	if n != last {
		s.Errorf("got %d lines of %d", n, last)
	}

	files, err := filepath.Glob(filepath.Join(s.node.Logs(), s.name+"_pod_*", "main", "*"))
	if err != nil || len(files) < 2 || len(files) > 3 {
		s.Errorf("got log files %v, %v, want 2 or 3", files, err)
	}
	s.expect("the newest lines", s.kubectl("logs", "--tail=1", "pod"), fmt.Sprintf("line %d of", last))
	s.expect("with times", s.kubectl("logs", "--tail=1", "--timestamps", "pod"), time.Now().UTC().Format("2006-01-02T"))
}
