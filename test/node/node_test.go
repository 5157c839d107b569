//go:build node

package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/node/cluster"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// newWorld starts crisp and a cluster of one node on it, with further settings
// for its kubelet, which finds these images there.
func newWorld(t *testing.T, settings map[string]any, images ...string) *world {
	t.Helper()
	return newWorldOn(t, lab.Options{Config: "runtime_handlers = [\"other\"]\nmetrics_address = \"127.0.0.1:0\"\n", Routed: true}, nil, settings, images...)
}

// newWorldOn is newWorld with these options for crisp, and additional flags for
// kubelet.
func newWorldOn(t *testing.T, opt lab.Options, flags []string, settings map[string]any, images ...string) *world {
	t.Helper()
	return newWorldOf(t, cluster.Options{}, opt, flags, settings, images...)
}

// newWorldOf is newWorldOn with these options for the cluster.
func newWorldOf(t *testing.T, kind cluster.Options, opt lab.Options, flags []string, settings map[string]any, images ...string) *world {
	t.Helper()
	l := testkit.Daemon(t, opt)
	c, err := cluster.New(t.Context(), filepath.Join(shortDir(t), "cluster"), kind)
	if errors.Is(err, lab.ErrNotMade) {
		testkit.Skip(t, "kubernetes", err.Error())
	}
	if err != nil {
		t.Fatalf("start a control plane: %v", err)
	}

	w := &world{Cluster: c}
	for _, image := range images {
		if _, err := l.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the cluster's logs:\n%s", c.Logs())
		}
		w.empty(t)
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("end the cluster: %v", err)
		}
	})

	if w.node, err = c.AddNode(t.Context(), "node-1", l, nil, settings, flags...); err != nil {
		t.Fatalf("start a node: %v", err)
	}
	return w
}

// shortDir returns a directory whose path has not the test's name in it: those of the sockets
// of drivers below kubelet's directory may have 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// empty waits until kubelet has removed the pods of the namespaces of earlier
// tests.
func (w *world) empty(t *testing.T) {
	ctx, cancel := contextAfter(t)
	defer cancel()
	for ctx.Err() == nil {
		reap()
		if pods, err := w.Kubectl(ctx, "", "get", "pods", "-A", "-o", "name"); err == nil && pods == "" {
			return
		}
		time.Sleep(300 * time.Millisecond)
	}
	t.Error("kubelet does not remove all pods")
}

// TestNode runs workloads on one node. Those that do not affect the node run
// concurrently, the others after them.
func TestNode(t *testing.T) {
	w := newWorld(t, collecting(t), unused)
	t.Run("ready", w.ready)
	t.Run("workloads", func(t *testing.T) {
		for name, test := range workloads() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(w.space(t))
			})
		}
	})

	t.Run("latency", w.latency)
	t.Run("image garbage", w.imageGarbage)
	t.Run("load", w.load)
	t.Run("stats from CRI", w.statsFromCRI)
	t.Run("memory pressure", w.memoryPressure)
	t.Run("disk pressure", w.diskPressure)
	t.Run("graceful shutdown", w.gracefulShutdown)
}

// workloads are tests that do not affect the node.
func workloads() map[string]func(*space) {
	return map[string]func(*space){
		"Deployment": deployment, "Service": service, "DNS": dns, "DaemonSet": daemonSet, "Job": job, "CronJob": cronJob, "StatefulSet": statefulSet,
		"init and sidecars": initAndSidecars, "probes": probes, "hooks": hooks, "endings": endings, "process namespace": processNamespace,
		"host network and ports": hostNetwork, "RuntimeClass": runtimeClasses, "quota": quota, "resize": resize, "static pod": staticPod,
		"volumes": volumes, "user namespace": userNamespace, "ephemeral storage": pressure,
		"exec": execCommand, "attach": attach, "cp": copying, "port-forward": portForward, "debug": debug, "logs": logs,
		"pull secrets": pullSecrets, "pull errors": pullErrors,
	}
}

// ready waits for the node with kubectl.
func (w *world) ready(t *testing.T) {
	s := w.space(t)
	s.eventually("the node has registered", s.holds("node-1", "get", "nodes"))
	s.wait("condition=Ready", "node/"+w.node.Name)
	s.expect("the node", s.kubectl("get", "node", w.node.Name, "-o", "wide"), "Ready", "crisp://", w.node.IP)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: first}
spec: {containers: [{name: main, image: BUSYBOX, command: [sh, -c, "echo it runs; sleep 1000"]}]}
`)
	s.waitReady("first")
	s.expect("the log", s.kubectl("logs", "first"), "it runs")
}
