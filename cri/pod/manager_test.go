package pod

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/keeper/client"
)

func bareManager() *Manager {
	return &Manager{
		pods: map[string]*pod{}, containers: map[string]*pod{}, names: map[string]string{},
		ops: map[string]*operation{}, arrivals: map[string]*receiving{},
	}
}

func TestRetryJoinsTheOperationUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bareManager()
		var runs atomic.Int32
		work := func(ctx context.Context) (string, error) {
			runs.Add(1)
			time.Sleep(10 * time.Second)
			return "id", ctx.Err()
		}

		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.join(impatient, "key", Operation{}, work); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("impatient caller got %v", err)
		}

		id, err := m.join(t.Context(), "key", Operation{}, work)
		if id != "id" || err != nil || runs.Load() != 1 {
			t.Errorf("retry got %q, %v after %d runs", id, err, runs.Load())
		}

		if _, err := m.join(t.Context(), "key", Operation{}, work); err != nil || runs.Load() != 2 {
			t.Errorf("next call: %v after %d runs, want a run of its own", err, runs.Load())
		}
		m.wg.Wait()

		if len(m.ops) != 0 {
			t.Errorf("%d operations left", len(m.ops))
		}
	})
}

func TestFindByPrefix(t *testing.T) {
	m := bareManager()
	for _, id := range []string{"aa11", "aa22", "bb33"} {
		m.register(newPod(m, testRecord(t, id), nil))
	}

	for id, want := range map[string]error{
		"aa11": nil, "bb": nil, "b": nil, "aa": ErrAmbiguous, "cc": ErrNotFound, "": ErrInvalid, "aa11x": ErrNotFound,
	} {
		r, err := m.Sandbox(id)
		if !errors.Is(err, want) {
			t.Errorf("%q: error %v, want %v", id, err, want)
		}
		if want == nil && !strings.HasPrefix(r.ID, id) {
			t.Errorf("%q: found %s", id, r.ID)
		}
	}
}

func TestListFilters(t *testing.T) {
	m := bareManager()
	old, young := testRecord(t, "p1"), testRecord(t, "p2")
	old.CreatedAt, young.CreatedAt = 1, 2
	old.Phase = phaseStopped
	young.Config.Msg.Labels = map[string]string{"app": "web", "tier": "front"}

	hidden := *young.Containers[0]
	hidden.ID, hidden.Phase = "c2", "make spec"
	young.Containers = append(young.Containers, &hidden)
	for _, r := range []*Record{old, young} {
		m.register(newPod(m, r, nil))
	}

	starting := newPod(m, testRecord(t, "p3"), nil)
	starting.starting.Store(true)
	m.register(starting)

	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for name, tc := range map[string]struct {
		filter *runtimeapi.PodSandboxFilter
		want   string
	}{
		"all, newest first": {nil, "p2 p1"},
		"state":             {&runtimeapi.PodSandboxFilter{State: ready}, "p2"},
		"label":             {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, "p2"},
		"both labels":       {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "back"}}, ""},
		"id prefix":         {&runtimeapi.PodSandboxFilter{Id: "p"}, "p2 p1"},
		"id and state":      {&runtimeapi.PodSandboxFilter{Id: "p1", State: ready}, ""},
	} {
		var got []string
		for _, s := range m.ListSandboxes(tc.filter) {
			got = append(got, s.GetId())
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}

	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for name, tc := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		"all but the one being made": {nil, 2},
		"pod":                        {&runtimeapi.ContainerFilter{PodSandboxId: "p2"}, 1},
		"running":                    {&runtimeapi.ContainerFilter{State: running}, 2},
		"no such label":              {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"x": "y"}}, 0},
	} {
		if got := m.ListContainers(tc.filter); len(got) != tc.want {
			t.Errorf("%s: %d containers, want %d", name, len(got), tc.want)
		}
	}
}

// The message of a failed container may quote its output or a plugin's.
func TestMessagesAreValid(t *testing.T) {
	c := testRecord(t, "p1").Containers[0]
	c.Message = "exec /\xff\x1b[2J: no such file" + strings.Repeat("x", 2*maxMessage)
	got := c.Status().Message
	if !strings.HasPrefix(got, `exec /\xff\u001b[2J: no such file`) || len(got) > maxMessage {
		t.Errorf("the message is %d bytes: %.60q", len(got), got)
	}
}

func TestSlowEventReaderIsCutOff(t *testing.T) {
	m := bareManager()
	slow, quick := m.Subscribe(), m.Subscribe()
	r := testRecord(t, "p1")
	for range eventBacklog {
		m.events.sandbox(r, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		<-quick.C
	}

	m.events.container(r, "c1", runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	e := <-quick.C
	if e.GetContainerId() != "c1" || e.GetPodSandboxStatus().GetId() != "p1" || len(e.GetContainersStatuses()) != 1 {
		t.Errorf("event %v", e)
	}

	n := 0
	for range slow.C {
		n++
	}

	if n != eventBacklog || !errors.Is(slow.Err(), ErrSlow) {
		t.Errorf("slow reader got %d events and %v", n, slow.Err())
	}
	quick.Cancel()

	if _, ok := <-quick.C; ok || quick.Err() != nil {
		t.Errorf("cancelled reader: open %v, error %v", ok, quick.Err())
	}
	m.EndEvents()

	if _, ok := <-m.Subscribe().C; ok {
		t.Error("subscription after the end delivers")
	}
}

func TestExitReason(t *testing.T) {
	for _, tc := range []struct {
		code, signal int
		oom          uint64
		limit        int64
		want         string
		says         []string // nothing means no message
	}{
		{0, 0, 0, 0, reasonCompleted, nil},
		{0, 0, 1, 0, reasonCompleted, nil},
		{3, 0, 0, 0, reasonError, nil},
		{137, 9, 0, 0, reasonError, []string{"signal 9", "SIGKILL"}},
		{137, 0, 0, 0, reasonError, nil}, // exit 137
		{143, 15, 0, 0, reasonError, []string{"signal 15", "SIGTERM"}},
		{159, 31, 0, 0, reasonError, []string{"SIGSYS", "seccomp"}},
		{137, 9, 2, 1000, reasonOOMKilled, []string{"its first process", "2 killed", "1000 bytes"}},
		{1, 0, 1, 1000, reasonOOMKilled, []string{"other than the first", "1000 bytes"}},
		{137, 9, 1, 0, reasonOOMKilled, []string{"no limit", "pod"}},
	} {
		got, message := exitReason(client.Exit{Code: tc.code, Signal: tc.signal}, tc.oom, tc.limit)
		if got != tc.want || (message == "") != (tc.says == nil) {
			t.Errorf("code %d with %d OOM kills: %s (%s), want %s", tc.code, tc.oom, got, message, tc.want)
		}

		for _, part := range tc.says {
			if !strings.Contains(message, part) {
				t.Errorf("code %d with %d OOM kills: %q does not say %q", tc.code, tc.oom, message, part)
			}
		}
	}
}
