//go:build node

package node

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"crisp/test/node/cluster"
	"crisp/test/testkit/pace"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
)

// patience is how long anything may take.
var patience = flag.Duration("patience", pace.Scale(3*time.Minute), "how long anything may take")

// world is the cluster that the tests of this package share.
type world struct {
	*cluster.Cluster
	node *cluster.Node
}

// space is the namespace of one test.
type space struct {
	*testing.T
	*world
	name string
}

// space creates the namespace, and removes it with its content at the end of
// the test.
func (w *world) space(t *testing.T) *space {
	t.Helper()
	s := &space{t, w, spaceName(t)}
	s.cluster("create", "namespace", s.name)
	t.Cleanup(func() {
		ctx, cancel := contextAfter(t)
		defer cancel()
		if t.Failed() {
			out, err := w.Kubectl(ctx, "", "-n", s.name, "describe", "pods")
			t.Logf("pods in %s: %v\n%s", s.name, err, out)
		}

		if _, err := w.Kubectl(ctx, "", "delete", "namespace", s.name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})

	s.eventually("the namespace has its service account", func() error {
		_, err := s.try("get", "serviceaccount", "default")
		return err
	})
	return s
}

// contextAfter is for cleanups after a test.
func contextAfter(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(t.Context()), *patience)
}

// spaceName derives a namespace's name from a test's.
func spaceName(t *testing.T) string {
	name := strings.ToLower(t.Name()[strings.LastIndex(t.Name(), "/")+1:])
	return strings.Trim(regexp.MustCompile("[^a-z0-9]+").ReplaceAllString(name, "-"), "-")
}

func (s *space) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.Context(), *patience)
}

// try runs kubectl in the namespace.
func (s *space) try(args ...string) (string, error) {
	ctx, cancel := s.context()
	defer cancel()
	return s.Kubectl(ctx, "", append([]string{"-n", s.name}, args...)...)
}

// kubectl runs kubectl in the namespace, which must succeed, and returns what
// it printed.
func (s *space) kubectl(args ...string) string {
	s.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// cluster runs kubectl for what has no namespace.
func (s *space) cluster(args ...string) string {
	s.Helper()
	ctx, cancel := s.context()
	defer cancel()
	out, err := s.Kubectl(ctx, "", args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// apply applies manifests, in which BUSYBOX and AGNHOST stand for the images.
func (s *space) apply(manifests string) {
	s.Helper()
	ctx, cancel := s.context()
	defer cancel()
	text := strings.NewReplacer("BUSYBOX", busybox, "AGNHOST", agnhost, "\t", "  ").Replace(manifests)
	if _, err := s.Kubectl(ctx, text, "-n", s.name, "apply", "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// get returns a field of an object.
func (s *space) get(object, path string) string {
	s.Helper()
	return s.kubectl("get", object, "-o", "jsonpath="+path)
}

// wait waits for a condition, such as "condition=Ready" or
// "jsonpath={.status.phase}=Failed".
func (s *space) wait(condition string, objects ...string) {
	s.Helper()
	s.kubectl(append([]string{"wait", "--for=" + condition, "--timeout=" + patience.String()}, objects...)...)
}

// waitReady waits until pods are.
func (s *space) waitReady(pods ...string) {
	s.Helper()
	for _, p := range pods {
		s.wait("condition=Ready", "pod/"+p)
	}
}

// rolledOut waits until the rollout of workloads, such as "deployment/web", is
// complete.
func (s *space) rolledOut(workloads ...string) {
	s.Helper()
	for _, w := range workloads {
		s.kubectl("rollout", "status", w, "--timeout="+patience.String())
	}
}

// eventually polls until check finds nothing wrong.
func (s *space) eventually(what string, check func() error) {
	s.Helper()
	s.within(*patience, what, check)
}

// within polls until check finds nothing wrong or time is up.
func (s *space) within(limit time.Duration, what string, check func() error) {
	s.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	s.Fatalf("%s: not within %v: %v", what, limit, err)
}

// expect fails the test unless text contains all of the words.
func (s *space) expect(what, text string, words ...string) {
	s.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.Errorf("%s: want %q in:\n%s", what, w, text)
		}
	}
}

// holds is a check for eventually: that kubectl prints a word.
func (s *space) holds(word string, args ...string) func() error {
	return func() error {
		out, err := s.try(args...)
		if err == nil && !strings.Contains(out, word) {
			err = fmt.Errorf("want %q in %q", word, out)
		}
		return err
	}
}
