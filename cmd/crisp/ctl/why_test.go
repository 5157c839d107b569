package ctl

import (
	"strings"
	"testing"
	"time"

	"crisp/cri/admin"
	"crisp/cri/pod"
)

// A container whose start is under way is not said to wait for somebody to ask for it;
// another one of its pod is.
func TestWhyStarting(t *testing.T) {
	now := time.Now()
	made := func(name string) admin.Container {
		return admin.Container{Name: name, ID: name + "-id", Phase: "ready", State: "created", CreatedAt: now.Add(-time.Minute)}
	}
	r := admin.Report{
		Pod: &admin.Pod{Name: "default/web", ID: "0123456789abcdef", Ready: true, CreatedAt: now, Containers: []admin.Container{made("main"), made("side")}},
		Operations: []admin.Waiting{
			{Operation: pod.Operation{What: "start container", Pod: "default/web", Container: "main", ContainerID: "main-id", Began: now}},
			{Operation: pod.Operation{What: "stop container", Pod: "default/web", Container: "side", ContainerID: "side-id", Began: now}},
		},
	}

	var b strings.Builder
	if err := explain(r, "", now).print(&b, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"container main: created 60s ago and being started\n", "container side: created 60s ago and not started: nobody has asked"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("got %q, want %q in it", b.String(), want)
		}
	}
}
