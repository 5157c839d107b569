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

// A pull that failed is why a pod has no containers, until it has succeeded.
func TestWhyPull(t *testing.T) {
	now := time.Now()
	event := func(ago time.Duration, e pod.Event) pod.Event {
		e.Time, e.Pod = now.Add(-ago), "default/web"
		return e
	}
	failed := event(time.Minute, pod.Event{What: "pull image failed", Image: "db:1", Error: "HTTP status 401 Unauthorized"})
	r := admin.Report{
		Pod:     &admin.Pod{Name: "default/web", ID: "0123456789abcdef", Ready: true, CreatedAt: now},
		History: []pod.Event{failed, event(time.Second, pod.Event{What: "started", Container: "other"})},
	}
	text := func() string {
		var b strings.Builder
		if err := explain(r, "", now).print(&b, false); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}

	got := text()
	if !strings.Contains(got, "failed: pull image db:1 failed 60s ago: HTTP status 401 Unauthorized\n    what to do: check imagePullSecrets") || strings.Contains(got, "nobody has asked") {
		t.Errorf("got %q", got)
	}
	r.History = append(r.History, event(0, pod.Event{What: "image pulled", Image: "db:1"}))
	if got := text(); strings.Contains(got, "failed: pull") || !strings.Contains(got, "  image db:1 pulled\n") || !strings.Contains(got, "nobody has asked") {
		t.Errorf("after another pull: %q", got)
	}
}
