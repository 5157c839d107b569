//go:build node

package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"crisp/test/testkit/lab"
)

// TestDevices gives pods devices in the ways that Kubernetes has: by a device plugin,
// and by claims of dynamic resources. Both programs are Kubernetes' own. A plugin of the
// Node Resource Interface is connected meanwhile.
func TestDevices(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run")
	cdi := filepath.Join(run, "cdi")
	w := newWorldOn(t, lab.Options{Config: fmt.Sprintf("cdi_spec_dirs = [%q]", cdi), Routed: true}, nil, nil)
	t.Run("ready", w.ready)
	if _, err := w.node.StartDevicePlugin(run); err != nil {
		t.Fatal(err)
	}
	w.connectPlugin(t)
	t.Run("device plugin", func(t *testing.T) { w.devicePlugin(w.space(t)) })
	t.Run("claims", func(t *testing.T) { w.claims(w.space(t), cdi) })
}

// noted is a plugin that adds a variable to each container of a pod with a label.
type noted struct{}

func (noted) CreateContainer(_ context.Context, p *api.PodSandbox, _ *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if p.GetLabels()["plugin"] == "" {
		return nil, nil, nil
	}
	a := &api.ContainerAdjustment{}
	a.AddEnv("PLUGIN", p.GetLabels()["plugin"])
	return a, nil, nil
}

func (w *world) connectPlugin(t *testing.T) {
	s, err := stub.New(noted{}, stub.WithPluginName("noted"), stub.WithPluginIdx("10"), stub.WithSocketPath(filepath.Join(w.node.Lab.Dir, "nri.sock")), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
}

// devicePlugin has pods request a resource of which the node has two.
func (w *world) devicePlugin(s *space) {
	s.Cleanup(func() {
		os.Remove("/tmp/Dev-1")
		os.Remove("/tmp/Dev-2")
	})
	s.eventually("the node has the resource", s.holds("2", "get", "node", w.node.Name, "-o", `jsonpath={.status.allocatable.example\.com/resource}`))
	pod := func(name string, n int) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {plugin: also}}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- {name: main, image: BUSYBOX, command: [sleep, "1000"], resources: {limits: {example.com/resource: %d}}}
---`, name, n)
	}
	s.apply(pod("both", 2))
	s.waitReady("both")
	if got := s.kubectl("exec", "both", "--", "sh", "-c", "ls /tmp; stat -c '%F %t' /tmp/CDI-Dev-1; echo $PLUGIN"); got != "CDI-Dev-1\nCDI-Dev-2\nDev-1\nDev-2\nblock special file 1\nalso\n" {
		s.Errorf("the container has %q", got)
	}

	s.apply(pod("waits", 1))
	s.eventually("a third device is not there", s.holds("Insufficient example.com/resource", "describe", "pod", "waits"))
	s.kubectl("delete", "pod", "both", "--now")
	s.waitReady("waits")
	if got := s.kubectl("exec", "waits", "--", "sh", "-c", "ls /tmp | grep -c CDI"); got != "1\n" {
		s.Errorf("the container has %q devices", got)
	}
}

// startDriver starts the driver until the test ends: its sockets keep kubelet's directory
// from being unmounted.
func (w *world) startDriver(s *space, cdi string) *lab.Process {
	driver, err := w.node.StartDriver(cdi, 3)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := driver.Stop(); err != nil {
			s.Error(err)
		}
	})
	return driver
}

// claims has pods claim dynamic resources: each for itself, and one for several. Driver
// and crisp restart meanwhile.
func (w *world) claims(s *space, cdi string) {
	driver := w.startDriver(s, cdi)
	s.eventually("the driver has published its devices", s.holds("test-driver.cdi.k8s.io", "get", "resourceslices"))
	s.apply(`
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: example}
spec: {selectors: [{cel: {expression: 'device.driver == "test-driver.cdi.k8s.io"'}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: shared}
spec: {devices: {requests: [{name: one, exactly: {deviceClassName: example}}], config: [{opaque: {driver: test-driver.cdi.k8s.io, parameters: {shared: "yes"}}}]}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: own}
spec: {spec: {devices: {requests: [{name: one, exactly: {deviceClassName: example}}], config: [{opaque: {driver: test-driver.cdi.k8s.io, parameters: {own: "yes"}}}]}}}
`)
	s.Cleanup(func() { s.cleanUp("delete", "deviceclass", "example") })
	pod := func(name, claim string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
	terminationGracePeriodSeconds: 1
	resourceClaims: [{name: it, %s}]
	containers:
	- {name: with, image: BUSYBOX, command: [sleep, "1000"], resources: {claims: [{name: it}]}}
	- {name: without, image: BUSYBOX, command: [sleep, "1000"]}
---`, name, claim)
	}
	env := func(pod, container string) string {
		return s.kubectl("exec", pod, "-c", container, "--", "sh", "-c", "env | grep -E '^(user|admin)_|claim_' | sort")
	}
	s.apply(pod("a", "resourceClaimName: shared") + pod("b", "resourceClaimName: shared") + pod("c", "resourceClaimTemplateName: own"))
	s.waitReady("a", "b", "c")
	for _, name := range []string{"a", "b"} {
		s.expect("the shared claim in "+name, env(name, "with"), "user_shared=yes", "claim_shared_one=true")
	}
	s.expect("the own claim", env("c", "with"), "user_own=yes")
	if got, err := s.try("exec", "a", "-c", "without", "--", "sh", "-c", "env | grep -c claim_"); err == nil {
		s.Errorf("a container without the claim has %q", got)
	}

	// What exists works on without the driver, which the next pod waits for. A new
	// driver does not know what it has prepared before.
	specs := filepath.Join(cdi, "test-driver*")
	before, err := filepath.Glob(specs)
	if err != nil || len(before) != 2 {
		s.Errorf("the driver's specifications are %q, %v, want two", before, err)
	}
	if err := driver.Stop(); err != nil {
		s.Error(err)
	}
	w.node.Lab.Kill()
	if err := w.node.Lab.Start(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.expect("the own claim after a restart", env("c", "with"), "user_own=yes")
	w.startDriver(s, cdi)
	s.apply(pod("d", "resourceClaimTemplateName: own"))
	s.waitReady("d")
	s.expect("the own claim of another pod", env("d", "with"), "user_own=yes")

	s.kubectl("delete", "pod", "a", "b", "c", "d", "--now")
	s.eventually("the driver has removed its last specification", func() error {
		left, err := filepath.Glob(specs)
		left = slices.DeleteFunc(left, func(file string) bool { return slices.Contains(before, file) })
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left are %s", strings.Join(left, ", "))
		}
		return err
	})
}
