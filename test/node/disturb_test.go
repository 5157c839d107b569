//go:build node

package node

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
	"crisp/test/testkit/inventory"
)

var probed = flag.Int("probed", 50, "how many `pods` with probes every second to run")

// crowd is a namespace with many pods that are probed by exec every second,
// for as long as the test runs.
func (w *world) crowd(t *testing.T) *space {
	s := w.space(t)
	s.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd}
spec:
	replicas: %d
	selector: {matchLabels: {app: crowd}}
	strategy: {rollingUpdate: {maxSurge: 0}}
	template:
		metadata: {labels: {app: crowd}}
		spec:
			terminationGracePeriodSeconds: 1
			containers:
			- name: main
				image: BUSYBOX
				command: [sh, -c, "touch /tmp/well; while :; do echo alive; sleep 1; done"]
				readinessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, timeoutSeconds: 10}
				livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 5}
`, *probed))

	s.rolledOut("deployment/crowd")
	return s
}

// undisturbed fails unless all of the crowd keeps running and is ready.
func (s *space) undisturbed(after string) {
	s.Helper()
	s.rolledOut("deployment/crowd")
	restarts := strings.Fields(s.get("pods", "{.items[?(@.metadata.labels.app=='crowd')].status.containerStatuses[*].restartCount}"))
	if len(restarts) != *probed {
		s.Errorf("%s: there are %d containers, want %d", after, len(restarts), *probed)
	}
	for _, n := range restarts {
		if n != "0" {
			s.Errorf("%s: containers restarted: %v", after, restarts)
			break
		}
	}
}

// load runs a crowd, and stops and kills the daemon and kubelet in every way
// meanwhile.
func (w *world) load(t *testing.T) {
	s := w.crowd(t)
	ctx := t.Context()
	t.Run("exec probes", func(t *testing.T) {
		s := s.in(t)
		before := s.metric("prober_probe_total", `probe_type="Liveness"`)
		time.Sleep(20 * time.Second)
		s.undisturbed("probed for a while")
		t.Logf("%.1f exec probes of liveness in a second", (s.metric("prober_probe_total", `probe_type="Liveness"`)-before)/20)
	})

	t.Run("daemon restart", func(t *testing.T) {
		s := s.in(t)
		if err := w.node.Lab.Stop(); err != nil {
			t.Fatal(err)
		}

		if err := w.node.Lab.Start(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		s.undisturbed("after a restart of the daemon")
	})

	t.Run("daemon killed", func(t *testing.T) {
		s := s.in(t)
		for range 3 {
			w.node.Lab.Kill()
			if err := w.node.Lab.Start(ctx); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		s.undisturbed("after SIGKILLs of the daemon")
	})

	t.Run("keeper killed", func(t *testing.T) {
		s := s.in(t)
		pid, err := w.node.Lab.Keeper()
		if err == nil {
			err = unix.Kill(pid, unix.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}

		time.Sleep(5 * time.Second)
		reap()
		s.undisturbed("after SIGKILL of the keeper")
	})

	t.Run("kubelet restart", func(t *testing.T) {
		s := s.in(t)
		w.restartKubelet(t, nil)
		time.Sleep(5 * time.Second)
		s.undisturbed("after a restart of kubelet")
	})

	t.Run("upgrade", func(t *testing.T) { s.in(t).upgrade() })
	t.Run("still serves", func(t *testing.T) {
		s := s.in(t)
		pods := strings.Fields(s.get("pods", "{.items[?(@.metadata.labels.app=='crowd')].metadata.name}"))
		s.expect("exec", s.kubectl("exec", pods[0], "--", "echo", "hello"), "hello")
		s.expect("logs", s.kubectl("logs", "--tail=2", pods[0]), "alive\nalive\n")
		s.kubectl("delete", "pod", pods[0])
		s.rolledOut("deployment/crowd")
	})
}

// upgrade upgrades crisp and its keeper, and downgrades them again, while pods
// come and go.
func (s *space) upgrade() {
	keeper, err := s.node.Lab.Keeper()
	if err != nil {
		s.Fatal(err)
	}

	const version = "99.0.0"
	for i, binary := range []string{s.otherBuild(version), ""} {
		job := fmt.Sprintf("meanwhile-%d", i)
		s.apply(fmt.Sprintf(`
apiVersion: batch/v1
kind: Job
metadata: {name: %s}
spec:
	completions: 10
	parallelism: 3
	backoffLimit: 0
	template: {metadata: {labels: {app: job}}, spec: {restartPolicy: Never, containers: [{name: main, image: BUSYBOX, command: [sleep, "1"]}]}}
`, job))

		s.eventually("pods come and go", func() error {
			if n := s.get("job/"+job, "{.status.succeeded}"); n == "" {
				return errors.New("none has ended")
			}
			return nil
		})

		if err := s.node.Lab.Upgrade(s.Context(), binary); err != nil {
			s.Fatal(err)
		}
		s.eventually("the node reports its runtime's version", func() error {
			got := s.get("node/"+s.node.Name, "{.status.nodeInfo.containerRuntimeVersion}")
			if strings.Contains(got, version) != (binary != "") {
				return errors.New(got)
			}
			return nil
		})

		s.wait("condition=complete", "job/"+job)
		s.undisturbed("after an upgrade")
		if now, err := s.node.Lab.Keeper(); err != nil || now != keeper {
			s.Errorf("the keeper is process %d, %v, was %d", now, err, keeper)
		}
	}
}

// otherBuild builds programs of another version and returns the daemon's.
func (s *space) otherBuild(version string) string {
	s.Helper()
	dir := s.TempDir()
	build := exec.CommandContext(s.Context(), "go", "build", "-trimpath", "-ldflags=-s -w -X main.version="+version, "-o", dir, "crisp/cmd/crisp")
	if out, err := build.CombinedOutput(); err != nil {
		s.Fatalf("build another version: %v: %s", err, out)
	}

	// The keeper has no version. A byte at its end makes it another program.
	own, err := os.ReadFile(filepath.Join("..", "..", "bin", "crisp-keeper"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "crisp-keeper"), append(own, 0), 0o700)
	}
	if err != nil {
		s.Fatal(err)
	}

	return filepath.Join(dir, "crisp")
}

// reap waits for processes whose parents died, as init does on a machine. The
// keeper's become children of this process when the daemon that started it is
// dead; and an unreaped command in a container keeps its PID namespace alive.
func reap() { inventory.Descendants(os.Getpid()) }

// in is the space in a subtest.
func (s *space) in(t *testing.T) *space { return &space{t, s.world, s.name} }

// restartKubelet restarts kubelet with other settings, which it keeps until the
// next restart.
func (w *world) restartKubelet(t *testing.T, settings map[string]any) {
	t.Helper()
	if err := w.node.StopKubelet(); err != nil {
		t.Fatal(err)
	}

	usual := maps.Clone(w.node.Config)
	maps.Copy(w.node.Config, settings)
	err := w.node.StartKubelet(t.Context())
	w.node.Config = usual
	if err != nil {
		t.Fatal(err)
	}

	s := &space{t, w, "default"}
	s.eventually("the node is ready again", func() error {
		_, err := s.try("wait", "--for=condition=Ready", "node/"+w.node.Name, "--timeout=5s")
		return err
	})
}

// memoryPressure makes pods use more memory than is allocatable. That is little
// here, and harmless to the machine.
func (w *world) memoryPressure(t *testing.T) {
	s := w.space(t)
	capacity := s.mebibytes(s.get("node/"+w.node.Name, "{.status.capacity.memory}"))
	w.restartKubelet(t, map[string]any{
		"systemReserved": map[string]string{"memory": fmt.Sprintf("%dMi", capacity-1000)},
		"evictionHard":   map[string]string{"memory.available": "300Mi"}, "evictionPressureTransitionPeriod": "5s",
	})

	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
	terminationGracePeriodSeconds: 1
	volumes: [{name: memory, emptyDir: {medium: Memory}}]
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "dd if=/dev/zero of=/memory/big bs=1M count=800; sleep 1000"]
		volumeMounts: [{name: memory, mountPath: /memory}]
`)

	s.wait("jsonpath={.status.reason}=Evicted", "pod/greedy")
	s.expect("why", s.get("pod/greedy", "{.status.message}"), "memory")
	w.restartKubelet(t, nil)
	s.wait("condition=MemoryPressure=false", "node/"+w.node.Name)
}

// diskPressure creates a file that leaves less disk space than kubelet
// requires, so that it removes unused images, and when that is not enough, the
// pod. The margins allow for writes and removals by others in the meantime.
func (w *world) diskPressure(t *testing.T) {
	s := w.space(t)
	var fs unix.Statfs_t
	if err := unix.Statfs(w.Dir, &fs); err != nil {
		t.Fatal(err)
	}

	const gigabyte = 1 << 30
	free := int64(fs.Bavail) * fs.Bsize
	if free < 8*gigabyte {
		testkit.Skip(t, "disk", "8 GB of free room are needed")
	}

	s.pull(unused)
	w.restartKubelet(t, map[string]any{
		"evictionHard": map[string]string{"nodefs.available": fmt.Sprint(free - 2*gigabyte), "memory.available": "50Mi"}, "evictionPressureTransitionPeriod": "5s",
	})

	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
	terminationGracePeriodSeconds: 1
	volumes: [{name: empty, emptyDir: {}}]
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "fallocate -l 5G /empty/big; sleep 1000"]
		volumeMounts: [{name: empty, mountPath: /empty}]
`)

	s.wait("jsonpath={.status.reason}=Evicted", "pod/greedy")
	s.expect("why", s.get("pod/greedy", "{.status.message}"), "ephemeral-storage")
	if s.has(unused) {
		t.Error("an unused image is still there")
	}

	w.restartKubelet(t, nil)
	s.wait("condition=DiskPressure=false", "node/"+w.node.Name)
}

func (s *space) mebibytes(quantity string) int {
	s.Helper()
	var n int
	if _, err := fmt.Sscanf(quantity, "%dKi", &n); err != nil {
		s.Fatalf("memory of %q: %v", quantity, err)
	}
	return n / 1024
}
