package client

import (
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// testPod makes a pod with containers, of which those in capitals run.
func testPod(id, namespace, name string, ready bool, containers ...string) *Pod {
	state := runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	if ready {
		state = runtimeapi.PodSandboxState_SANDBOX_READY
	}
	p := &Pod{PodSandbox: &runtimeapi.PodSandbox{Id: id, State: state, Metadata: &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name}}}
	for i, name := range containers {
		state := runtimeapi.ContainerState_CONTAINER_EXITED
		if name[0] == '+' {
			name, state = name[1:], runtimeapi.ContainerState_CONTAINER_RUNNING
		}
		p.Containers = append(p.Containers, &runtimeapi.Container{Id: "c" + id + string(rune('0'+i)), State: state, Metadata: &runtimeapi.ContainerMetadata{Name: name}})
	}
	return p
}

func TestFind(t *testing.T) {
	l := Pods{
		testPod("a1", "default", "web", false, "app", "side"),
		testPod("a2", "default", "web", true, "app", "+app", "app"),
		testPod("b1", "other", "web", true, "+one", "+two"),
		testPod("b2", "default", "db", true, "+db"),
		testPod("d1", "default", "idle", true),
		testPod("e1", "x", "abc", true, "+b2"),
	}

	for name, want := range map[string]string{
		"default/web": "a2", "other/web": "b1", "db": "b2", "a1": "a1", "b2": "b2", "d": "d1",
		"default/web/app": "ca21", "web/app": "ca21", "web/one": "cb10", "default/db/db": "cb20", "ca1": "", "ca10": "ca10",
		"web": "", "nothing": "", "": "", "c": "", "default": "", "b": "",
	} {
		o, err := l.Find(name)
		if (err == nil) != (want != "") || err == nil && o.ID() != want {
			t.Errorf("%q is %v, %v, want %q", name, o, err, want)
		}
		if err != nil && !errors.Is(err, ErrAmbiguous) && !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}

	for name, want := range map[string]string{"default/web": "ca21", "db": "cb20", "other/web": "", "idle": "", "other/web/two": "cb11", "a1": ""} {
		o, err := l.Container(name)
		if (err == nil) != (want != "") || err == nil && o.ID() != want {
			t.Errorf("container %q is %v, %v, want %q", name, o, err, want)
		}
	}
	if p, err := l.Pod("default/db/db"); err == nil {
		t.Errorf("a container is pod %v", p)
	}
}
