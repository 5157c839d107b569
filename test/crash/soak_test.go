//go:build crash

package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	soakPods    = flag.Int("pods", 300, "how many pods are run and removed in the soak")
	soakClients = flag.Int("clients", 6, "how many of them run at the same time")
	soakKills   = flag.Int("restarts", 8, "how often the daemon and the keeper are each killed during it")
)

// Growth that is tolerated, since Go returns memory late.
const (
	sameDaemon = 12 << 10 // KB
	sameKeeper = 3 << 10
)

// soak is a number of clients that each run one pod after the other.
type soak struct {
	n     *node
	t     *testing.T
	next  atomic.Int64
	execs atomic.Int64
	again atomic.Int64
}

// TestSoak runs and removes many pods while daemon and keeper are killed, and then
// checks that nothing has leaked and that the memory of both has not grown.
func TestSoak(t *testing.T) {
	n := newNode(t, untraced)
	t.Logf("-seed %d", *seed)
	sk := &soak{n: n, t: t}
	sk.round(*soakClients*4, 1, 1) // so that one-time allocations are done

	before := n.belongings(t)
	daemon, keeper := sk.memory()
	begin := time.Now()
	sk.next.Store(0)
	sk.round(*soakPods, *soakKills, *soakKills)

	took := time.Since(begin)
	n.wantNoMore(t, "after the soak", before)
	n.wantNoMore(t, "after the soak", n.usual)
	after := n.belongings(t)
	daemonAfter, keeperAfter := sk.memory()
	if daemonAfter > daemon+sameDaemon {
		t.Errorf("the daemon uses %d KB, at first %d KB", daemonAfter, daemon)
	}

	if keeperAfter > keeper+sameKeeper {
		t.Errorf("the keeper uses %d KB, at first %d KB", keeperAfter, keeper)
	}
	passed := "yes"

	if t.Failed() {
		passed = "no"
	}
	publish(t, "soak", fmt.Sprintf(`| pods | clients | commands | kills of the daemon | of the keeper | calls retried | minutes | resources on the node before, after | daemon KB before, after | keeper KB before, after | passed |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| %d | %d | %d | %d | %d | %d | %.1f | %d, %d | %d, %d | %d, %d | %s |
`, *soakPods, *soakClients, sk.execs.Load(), *soakKills, *soakKills, sk.again.Load(), took.Minutes(),
		len(before), len(after), daemon, daemonAfter, keeper, keeperAfter, passed))
}

// round runs pods, with kills meanwhile.
func (sk *soak) round(pods, daemons, keepers int) {
	var clients, killer sync.WaitGroup
	quit := make(chan struct{})
	killer.Go(func() { sk.kill(quit, pods, daemons, keepers) })

	for i := range *soakClients {
		random := rand.New(rand.NewPCG(*seed, uint64(i)))
		clients.Go(func() {
			for {
				i := int(sk.next.Add(1))
				if i > pods || sk.t.Failed() {
					return
				}
				sk.pod(i, random)
			}
		})
	}

	clients.Wait()
	close(quit)
	killer.Wait()
	sk.next.Store(0)
}

// kill kills the daemon and the keeper, evenly over the first two thirds of the
// pods: in the last third the survivors show whether they grow.
func (sk *soak) kill(quit chan struct{}, pods, daemons, keepers int) {
	for i := 1; i <= daemons+keepers; i++ {
		for int(sk.next.Load()) < i*pods*2/3/(daemons+keepers) {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}

		if i%2 == 0 {
			sk.n.killKeeper(sk.t)
			continue
		}

		sk.n.Kill()
		if err := sk.n.Start(sk.t.Context()); err != nil {
			sk.t.Errorf("start the daemon: %v", err)
			return
		}
	}
}

// until retries a call until it succeeds, as kubelet does.
func (sk *soak) until(what string, call func(context.Context) error) bool {
	for end := time.Now().Add(2 * callTime); ; {
		ctx, cancel := context.WithTimeout(sk.t.Context(), callTime)
		err := call(ctx)
		cancel()
		if err == nil {
			return true
		}

		if time.Now().After(end) || sk.t.Failed() {
			sk.t.Errorf("%s: %v", what, err)
			return false
		}
		sk.again.Add(1)
		time.Sleep(20 * time.Millisecond)
	}
}

// pod is the life of a pod: one or two containers, some commands, its log.
func (sk *soak) pod(i int, random *rand.Rand) {
	r := sk.n.Runtime
	s := sk.n.newScene(sk.t)
	if i%10 > 1 {
		kinds[2].change(s) // networks take most of the time
		s.container.Tty, s.container.Stdin = i%3 == 0, i%3 == 0
	}

	s.pod.PortMappings = nil
	s.pod.Metadata.Name = fmt.Sprintf("soak-%d", i)
	s.pod.LogDirectory = filepath.Join(sk.n.Dir, "logs", s.pod.Metadata.Name)
	s.container.Command = []string{"sh", "-c", "echo begin; exec sleep 1000"}

	for range 1 + random.IntN(2) {
		if !sk.life(s) {
			break
		}
		s.pod.Metadata.Attempt++
	}

	sk.until("remove "+s.pod.Metadata.Name, func(ctx context.Context) error {
		list, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}

		for _, p := range list.Items {
			if p.Metadata.Name != s.pod.Metadata.Name {
				continue
			}
			if _, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				return err
			}

			if _, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				return err
			}
		}

		return nil
	})
	_ = os.RemoveAll(s.pod.LogDirectory) // as kubelet does
}

// life runs a pod until its container has run its commands. A container whose
// start was interrupted is replaced by the next attempt.
func (sk *soak) life(s *scene) bool {
	r := sk.n.Runtime
	return sk.until("life of "+s.pod.Metadata.Name, func(ctx context.Context) error {
		p, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: s.pod})
		if err != nil {
			s.pod.Metadata.Attempt++ // a pod whose rollback fails keeps its name
			return err
		}

		s.container.Metadata.Attempt++
		c, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: s.container, SandboxConfig: s.pod})
		if err != nil {
			return err
		}

		if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return err
		}
		for range 2 {
			out, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"echo", "well"}})
			if err != nil {
				return err
			}
			if string(out.Stdout) != "well\n" || out.ExitCode != 0 {
				return fmt.Errorf("the command printed %q and exited with %d", out.Stdout, out.ExitCode)
			}
			sk.execs.Add(1)
		}

		if _, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return err
		}
		if _, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return err
		}

		log, err := os.ReadFile(filepath.Join(s.pod.LogDirectory, s.container.LogPath))
		if err != nil || !strings.Contains(string(log), "begin") {
			return fmt.Errorf("the log has %q: %w", log, err)
		}
		return nil
	})
}

// memory returns the resident set sizes of daemon and keeper, in KB.
func (sk *soak) memory() (daemon, keeper int) {
	sk.t.Helper()
	pid, err := sk.n.Keeper()
	if err != nil {
		sk.t.Fatal(err)
	}
	return residentKB(sk.n.PID()), residentKB(pid)
}

func residentKB(pid int) int {
	var kb int
	for line := range strings.Lines(slurp(fmt.Sprintf("/proc/%d/status", pid))) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(rest, &kb) // 0 if it has ended
		}
	}
	return kb
}

func slurp(path string) string {
	data, _ := os.ReadFile(path) // "" if there is none
	return string(data)
}
