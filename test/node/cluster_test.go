//go:build node

package node

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"crisp/test/node/cluster"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestTwoNodes runs a cluster of two nodes, each with crisp and a kubelet in a
// network namespace of its own, whose pods reach each other by routes.
func TestTwoNodes(t *testing.T) {
	w := newWorld(t, nil)
	t.Run("ready", w.ready)
	other, m := w.join(t, lab.Options{Routed: true})
	if err := m.Route(t.Context(), []string{w.node.Lab.Subnet()}, []string{other.Lab.Subnet()}); err != nil {
		t.Fatal(err)
	}
	t.Run("two nodes", func(t *testing.T) { w.across(w.space(t), other) })
}

// join adds a second node, with these options for crisp, on a machine of its own.
func (w *world) join(t *testing.T, opt lab.Options) (*cluster.Node, *cluster.Machine) {
	t.Helper()
	m, err := cluster.NewMachine(t.Context(), filepath.Join(t.TempDir(), "machine"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})

	opt.NoRegistry, opt.Second, opt.Below = true, true, m.Below()
	second := testkit.Daemon(t, opt)
	if err := m.Share(w.node.Lab.Registry, second); err != nil {
		t.Fatal(err)
	}
	other, err := w.AddNode(t.Context(), "node-2", second, m, nil)
	if err != nil {
		t.Fatalf("start a second node: %v", err)
	}

	// The cluster outlives the second lab, but its node cannot.
	t.Cleanup(func() {
		w.empty(t)
		if err := other.Leave(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("end the second node: %v", err)
		}
		if err := m.Unshare(); err != nil {
			t.Error(err)
		}
	})
	return other, m
}

// across has pods on both nodes talk to each other.
func (w *world) across(s *space, other *cluster.Node) {
	s.wait("condition=Ready", "node/"+w.node.Name, "node/"+other.Name)
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
	selector: {matchLabels: {app: web}}
	template:
		metadata: {labels: {app: web}}
		spec:
			terminationGracePeriodSeconds: 1
			containers: [{name: web, image: AGNHOST, args: [netexec], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
`)

	s.rolledOut("daemonset/web")
	pods := strings.Fields(s.get("pods", "{range .items[*]}{.metadata.name} {.status.podIP} {end}"))
	if len(pods) != 4 {
		s.Fatalf("pods and their addresses: %v, want two", pods)
	}

	for i := range 2 {
		from, ip, to, toIP := pods[2*i], pods[2*i+1], pods[2-2*i], pods[3-2*i]
		out := s.kubectl("exec", from, "--", "curl", "-s", "-m", "5", "http://"+toIP+":8080/clientip")
		if !strings.HasPrefix(out, ip+":") {
			s.Errorf("%s at %s reaches %s as %q", from, ip, to, out)
		}
		s.bothAnswer("the service from "+from, func() (string, error) {
			return s.try("exec", from, "--", "curl", "-s", "-m", "5", "http://"+s.get("service/web", "{.spec.clusterIP}")+"/hostname")
		})
	}

	for _, n := range []*cluster.Node{w.node, other} {
		s.bothAnswer("NodePort of "+n.Name, func() (string, error) { return fetch(fmt.Sprintf("http://%s:30081/hostname", n.IP)) })
	}
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: moves}
spec:
	replicas: 4
	selector: {matchLabels: {app: moves}}
	template:
		metadata: {labels: {app: moves}}
		spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: BUSYBOX, command: [sh, -c, "echo here; sleep 1000"]}]}
`)

	s.rolledOut("deployment/moves")
	s.cluster("drain", other.Name, "--ignore-daemonsets", "--timeout="+patience.String())
	s.rolledOut("deployment/moves")
	if nodes := s.get("pods", "{.items[?(@.metadata.labels.app=='moves')].spec.nodeName}"); strings.Contains(nodes, other.Name) {
		s.Errorf("after the drain there are pods on %s", nodes)
	}
}
