package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// writers are containers that count on both outputs until they are stopped. One
// that cannot write exits with code 99.
type writers struct {
	list []*container
	stop string // its existence stops them
}

// One line a write, and blocks that break lines.
const (
	countLines = `i=0; while :; do echo $i || exit 99; echo $i >&2 || exit 99; i=$((i+1))
		case $i in *00) [ -e /signal/stop ] && exit %d;; esac; done`
	countBlocks = `i=0; while [ ! -e /signal/stop ]; do seq $i $((i+999)) || exit 99; seq $i $((i+999)) >&2 || exit 99
		i=$((i+1000)); done; exit %d`
	countPaced = `i=0; while [ ! -e /signal/stop ]; do seq $i $((i+999)) || exit 99; seq $i $((i+999)) >&2 || exit 99
		i=$((i+1000)); sleep 0.02; done; exit %d`
	countTerminal = `i=0; while [ ! -e /signal/stop ]; do echo $i || exit 99; i=$((i+1)); done; exit %d`
)

func (n *node) startWriters(t *testing.T, count int) *writers {
	t.Helper()
	dir := t.TempDir()
	w := &writers{stop: filepath.Join(dir, "stop")}
	p := n.pod(t)
	for i := range count {
		script := []string{countBlocks, countLines, countBlocks, countLines, countTerminal}[i%5]
		terminal := func(c *runtimeapi.ContainerConfig) { c.Tty = i%5 == 4 }
		w.list = append(w.list, p.start(t, named(fmt.Sprintf("w%d", i)), mount(dir, "/signal"), terminal, sh(fmt.Sprintf(script, i+1))))
	}
	return w
}

// end stops the writers, and requires every number in the logs once, in order,
// and the exit codes.
func (w *writers) end(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(w.stop, nil, 0o644); err != nil {
		t.Fatal(err)
	}

	var wg sync.WaitGroup
	var lines atomic.Int64
	for i, c := range w.list {
		st := c.wait(t)
		if known := testkit.KernelAtLeast(t, 6, 15) || st.ExitCode != 255; known && st.ExitCode != int32(i+1) {
			t.Errorf("writer %d ended with code %d (%s)", i, st.ExitCode, st.Reason)
		}
		wg.Go(func() { lines.Add(int64(wantCounted(t, c.logFile(), c.logFile()+".1"))) })
	}
	wg.Wait()
	t.Logf("%d lines in order", lines.Load())
}

// wantCounted reads a log, of which there may be an older part. Both outputs
// count from 0 on and end with the same number; a terminal has but one. It returns the number of lines.
func wantCounted(t *testing.T, path, older string) int {
	next := map[string]int{}
	pending := map[string]string{}
	for _, p := range []string{older, path} {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		defer f.Close()

		lines := bufio.NewScanner(f)
		for lines.Scan() {
			f := bytes.SplitN(lines.Bytes(), []byte{' '}, 4)
			if len(f) != 4 {
				t.Errorf("%s: torn line %q", p, lines.Text())
				return 0
			}

			stream := string(f[1])
			content := pending[stream] + strings.TrimSuffix(string(f[3]), "\r")
			if string(f[2]) == "P" {
				pending[stream] = content
				continue
			}

			pending[stream] = ""
			if i, err := strconv.Atoi(content); err != nil || i != next[stream] {
				t.Errorf("%s: %s says %q behind %d", p, stream, content, next[stream]-1)
				return 0
			}
			next[stream]++
		}

		if err := lines.Err(); err != nil {
			t.Error(err)
		}
	}

	if n, terminal := next["stderr"], next["stderr"] == 0; next["stdout"] == 0 || !terminal && next["stdout"] != n {
		t.Errorf("%s: stdout has %d numbers, stderr %d", path, next["stdout"], next["stderr"])
	}
	return next["stdout"] + next["stderr"]
}

// testKeeperKilledOften kills the keeper repeatedly, also while it takes
// over from the last one.
func testKeeperKilledOften(t *testing.T, n *node) {
	const kills = 20
	count := pace.Load(50)
	w := n.startWriters(t, count)
	var killed []int
	for len(killed) < kills {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		for _, pid := range n.keepers(t) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed = append(killed, pid)
		}

		if len(killed) == kills/2 {
			rotate(t, w.list[0])
		}
	}

	n.awaitKeeper(t, killed)
	c := w.list[count/2]
	if got := string(c.exec(t, "echo", "there").Stdout); got != "there\n" {
		t.Errorf("exec says %q", got)
	}

	wantAttachable(t, c)
	w.end(t)
}

// rotate renames a container's log and has it reopened, as kubelet does.
func rotate(t *testing.T, c *container) {
	t.Helper()
	if err := os.Rename(c.logFile(), c.logFile()+".1"); err != nil {
		t.Fatal(err)
	}

	// The call waits for a keeper as long as one needs on real hardware to take
	// over from one that died.
	for end := time.Now().Add(pace.Scale(keeperPatience) - keeperPatience); ; {
		_, err := try(t, c.p.n.Runtime.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		if err == nil {
			return
		}
		if status.Code(err) != codes.Unavailable || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// keeperPatience is how long the daemon makes a call wait for another keeper.
const keeperPatience = 10 * time.Second

// wantAttachable attaches to a container that writes continuously.
func wantAttachable(t *testing.T, c *container) {
	t.Helper()
	got := make(chan struct{})
	var once sync.Once
	o := remotecommand.StreamOptions{Stdout: writeFunc(func(b []byte) (int, error) {
		once.Do(func() { close(got) })
		return 0, os.ErrClosed
	})}
	go func() { _ = dialer(dialSPDY).session(t, c.attachURL(t, o), o) }() // it ends with the command below
	select {
	case <-got:
	case <-time.After(callTime):
		t.Error("an attached client gets nothing")
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(b []byte) (int, error) { return f(b) }
