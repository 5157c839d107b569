package lab_test

import (
	"os"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

func TestDaemonRestarts(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	l := testkit.Daemon(t, lab.Options{NoRegistry: true})
	first := l.PID()
	l.Kill()
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	if l.PID() == first {
		t.Errorf("the daemon still has process ID %d", first)
	}
	v, err := l.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil || v.RuntimeName != "crisp" {
		t.Errorf("got %v, %v, want a response from crisp", v, err)
	}
}

func TestImagesArePulled(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	l := testkit.Daemon(t, lab.Options{})
	for _, name := range []string{"registry.k8s.io/pause:3.9", "docker.io/library/busybox:latest", "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"} {
		if _, err := l.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
			t.Errorf("pull %s: %v", name, err)
		}
	}
}

func TestIsolated(t *testing.T) {
	testkit.Root(t)
	if !lab.Isolated() {
		t.Error("the test runs in the machine's namespaces")
	}
}
