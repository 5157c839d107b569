package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/durable"
	"crisp/runtime/keeper/client"
)

func testRecord(t *testing.T, id string) *Record {
	t.Helper()
	sandbox := message(&runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1", Attempt: 3},
		Annotations: map[string]string{"ключ": "значение\n\"quoted\""},
	})

	ctr := message(&runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Envs:     []*runtimeapi.KeyValue{{Key: "RAW", Value: []byte{0xff, 0, '\n'}}},
	})
	return &Record{
		Version: recordVersion, BootID: "boot", ID: id, Config: sandbox, CreatedAt: 7, Phase: phaseReady,
		NetNS: "/run/netns/x", IPs: []string{"10.0.0.2", "fd00::2"},
		Containers: []*Container{{ID: "c1", Config: ctr, Phase: phaseReady, CreatedAt: 8, StartedAt: 9, Process: &Process{Pid: 4, StartTicks: 5}}},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	s := store{dir: t.TempDir()}
	want := testRecord(t, "p1")
	if err := os.MkdirAll(s.podDir("p1"), 0o700); err != nil {
		t.Fatal(err)
	}

	if err := save(durable.NewJournal(s.recordPath("p1")), nil, want); err != nil {
		t.Fatal(err)
	}
	l := s.loadOne("p1")
	if l.err != nil {
		t.Fatal(l.err)
	}

	got := l.record
	if !proto.Equal(got.Config.Msg, want.Config.Msg) {
		t.Errorf("sandbox configuration %v, want %v", got.Config.Msg, want.Config.Msg)
	}

	c := got.Container("c1")
	if c == nil || !proto.Equal(c.Config.Msg, want.Containers[0].Config.Msg) {
		t.Fatalf("container %+v", c)
	}

	if v := c.Config.Msg.GetEnvs()[0].GetValue(); !bytes.Equal(v, []byte{0xff, 0, '\n'}) {
		t.Errorf("variable %q lost its bytes", v)
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING || *c.Process != (Process{Pid: 4, StartTicks: 5}) {
		t.Errorf("state %v, process %+v", c.State(), c.Process)
	}
}

func TestBadRecordsHideNoOther(t *testing.T) {
	s := store{dir: t.TempDir()}
	bad := map[string]durable.Values{
		"future": {"pod": json.RawMessage(`{"Version":99,"ID":"future"}`)}, "kind": {"pod": json.RawMessage(`[1]`)}, "void": {},
		"other": {"pod": json.RawMessage(`{"Version":2,"ID":"somebody"}`), "config": json.RawMessage(`{"metadata":{}}`)},
		"half":  {"pod": json.RawMessage(`{"Version":2,"ID":"half"}`)}, "config": {"pod": json.RawMessage(`{"Version":2,"ID":"config"}`), "config": json.RawMessage(`{}`)},
		"container": {"pod": json.RawMessage(`{"Version":2,"ID":"container"}`), "config": json.RawMessage(`{"metadata":{}}`), "container x": json.RawMessage(`{}`)},
		"old":       {"Version": json.RawMessage("1"), "ID": json.RawMessage(`"old"`)}, "negative": {"Version": json.RawMessage("-1")},
	}

	for id, values := range bad {
		if err := os.MkdirAll(s.podDir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := durable.NewJournal(s.recordPath(id)).Append(values); err != nil {
			t.Fatal(err)
		}
	}

	if err := os.Mkdir(s.podDir("empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.recordPath("empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	if err := os.MkdirAll(filepath.Join(s.dir, "missing", "c1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.podDir("good"), 0o700); err != nil {
		t.Fatal(err)
	}

	if err := save(durable.NewJournal(s.recordPath("good")), nil, testRecord(t, "good")); err != nil {
		t.Fatal(err)
	}
	list, err := s.load()
	if err != nil {
		t.Fatal(err)
	}

	if want := len(bad) + 3; len(list) != want {
		t.Errorf("%d of %d directories listed", len(list), want)
	}
	for _, l := range list {
		if (l.err == nil) != (l.id == "good") || (l.record != nil) != (l.id == "good") {
			t.Errorf("%s: record %v, error %v", l.id, l.record, l.err)
		}
	}
}

// TestDamagedEnd has a record followed by a corrupted one. After a reboot,
// which makes most of it irrelevant, the older one suffices.
func TestDamagedEnd(t *testing.T) {
	s := store{dir: t.TempDir()}
	if err := os.Mkdir(s.podDir("p1"), 0o700); err != nil {
		t.Fatal(err)
	}

	if err := save(durable.NewJournal(s.recordPath("p1")), nil, testRecord(t, "p1")); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.recordPath("p1"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := f.WriteString("\x00\x00\x00\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s.bootID = "boot"

	if l := s.loadOne("p1"); !errors.Is(l.err, durable.ErrDamaged) || l.record != nil {
		t.Errorf("in the same boot: %+v, %v", l.record, l.err)
	}
	s.bootID = "next"

	l := s.loadOne("p1")
	if l.err != nil {
		t.Fatal(l.err)
	}

	if err := save(l.journal, l.record, l.record); err != nil {
		t.Fatal(err)
	}
	s.bootID = "boot"

	if l := s.loadOne("p1"); l.err != nil {
		t.Errorf("after another record: %v", l.err)
	}
}

// firstVersion is a record as version 1 wrote it, after which the pod was
// stopped.
const firstVersion = `{"Version":1,"BootID":"boot","ID":"p1","Config":{"metadata":{"name":"web","uid":"u1"}},"Handler":"","CreatedAt":7,"Phase":"ready","NetNS":"/run/netns/x","IPs":["10.0.0.2"],"Pause":{"Pid":3,"StartTicks":4},"Resources":{"cpu_shares":"512"},` +
	`"Containers":[{"ID":"c2","Config":{"metadata":{"name":"main"}},"ImageID":"sha256:1","ImageRef":"busybox","Phase":"ready","CreatedAt":8,"StartedAt":9,"FinishedAt":0,"ExitCode":0,"Process":{"Pid":5,"StartTicks":6},"CgroupPath":"/kubepods/c2","StopSignal":0,"User":{"UID":0,"GID":0},"Resources":{"cpu_shares":"256"}},` +
	`{"ID":"c1","Config":{"metadata":{"name":"side"}},"ImageID":"","ImageRef":"","Phase":"make spec","CreatedAt":9,"StartedAt":0,"FinishedAt":0,"ExitCode":0,"Process":null,"CgroupPath":"","StopSignal":0,"User":{"UID":0,"GID":0}}]}`

// TestFirstVersion reads a record of an older build, continues with it, and
// reads it again: nothing of the old format may be left in it.
func TestFirstVersion(t *testing.T) {
	s := store{dir: t.TempDir(), bootID: "boot"}
	if err := os.Mkdir(s.podDir("p1"), 0o700); err != nil {
		t.Fatal(err)
	}

	// Each line had the whole record; what a later one lacks was removed.
	before := strings.Replace(firstVersion, `"Phase":"ready"`, `"Reason":"not yet","Phase":"make files"`, 1)
	var text []byte
	for _, line := range []string{before, firstVersion} {
		text = fmt.Appendf(text, "%08x %s\n", crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli)), line)
	}
	if err := os.WriteFile(s.recordPath("p1"), text, 0o600); err != nil {
		t.Fatal(err)
	}

	l := s.loadOne("p1")
	if l.err != nil {
		t.Fatal(l.err)
	}

	assertFirst(t, l.record)
	if l.record.Pause == nil {
		t.Error("the pause process is forgotten")
	}

	next := l.record.clone()
	next.Pause = nil
	if err := save(l.journal, l.record, next); err != nil {
		t.Fatal(err)
	}

	again := s.loadOne("p1")
	if again.err != nil {
		t.Fatal(again.err)
	}

	assertFirst(t, again.record)
	if again.record.Pause != nil {
		t.Error("the pause process is still there")
	}
	if text, err := os.ReadFile(s.recordPath("p1")); err != nil || bytes.Contains(text, []byte(`"Version":1`)) {
		t.Errorf("the older build's record is still there: %s, %v", text, err)
	}
}

func assertFirst(t *testing.T, r *Record) {
	t.Helper()
	if r.Version != recordVersion || r.Phase != phaseReady || r.Reason != "" || r.NetNS != "/run/netns/x" || r.Config.Msg.GetMetadata().GetName() != "web" || r.Resources.Msg.GetCpuShares() != 512 {
		t.Errorf("record %+v", r)
	}
	if len(r.Containers) != 2 || r.Containers[0].ID != "c2" || r.Containers[1].ID != "c1" {
		t.Fatalf("containers %+v", r.Containers)
	}
	c := r.Containers[0]
	if c.Config.Msg.GetMetadata().GetName() != "main" || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.limits().GetCpuShares() != 256 || c.CgroupPath != "/kubepods/c2" {
		t.Errorf("container %+v", c)
	}
}

// TestChangeIsSmall: the size of a written change does not grow with the rest
// of the pod, and a removal is written once.
func TestChangeIsSmall(t *testing.T) {
	s := store{dir: t.TempDir()}
	if err := os.Mkdir(s.podDir("p1"), 0o700); err != nil {
		t.Fatal(err)
	}

	r := testRecord(t, "p1")
	r.Config.Msg.Annotations = map[string]string{"long": strings.Repeat("x", 256<<10)}
	for i := range 50 {
		r.Containers = append(r.Containers, &Container{ID: fmt.Sprint("more", i), Phase: phaseReady, CreatedAt: int64(10 + i), Config: message(&runtimeapi.ContainerConfig{
			Annotations: map[string]string{"long": strings.Repeat("x", 256<<10)},
		})})
	}

	j := durable.NewJournal(s.recordPath("p1"))
	if err := save(j, nil, r); err != nil {
		t.Fatal(err)
	}

	size := func() int64 {
		st, err := os.Stat(s.recordPath("p1"))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}

	for name, change := range map[string]func(*Record){
		"phase":     func(r *Record) { r.Phase = phaseStopping },
		"container": func(r *Record) { r.edit("more7", func(c *Container) { c.StartedAt = 100 }) },
		"dropped":   func(r *Record) { r.drop("more8") },
		"nothing":   func(*Record) {},
	} {
		next, before := r.clone(), size()
		change(next)
		if err := save(j, r, next); err != nil {
			t.Fatal(err)
		}

		if n := size() - before; n <= 0 || n > 2048 {
			t.Errorf("%s: %d bytes written", name, n)
		}
		r = next
	}

	l := s.loadOne("p1")
	if l.err != nil {
		t.Fatal(l.err)
	}
	if len(l.record.Containers) != len(r.Containers) {
		t.Fatalf("%d containers, want %d", len(l.record.Containers), len(r.Containers))
	}

	for i, c := range l.record.Containers {
		if want := r.Containers[i]; c.ID != want.ID || c.StartedAt != want.StartedAt || !proto.Equal(c.Config.Msg, want.Config.Msg) {
			t.Errorf("container %d: %s started at %d, want %s, %d", i, c.ID, c.StartedAt, want.ID, want.StartedAt)
		}
	}

	if l.record.Phase != phaseStopping {
		t.Errorf("phase %s", l.record.Phase)
	}
}

// TestPhaseAfterReboot: a power cut may leave an earlier phase on disk than was
// reached, so then every step may have run.
func TestPhaseAfterReboot(t *testing.T) {
	r := testRecord(t, "p1")
	r.Phase = sandboxSteps[0].name
	for boot, want := range map[string]string{r.BootID: r.Phase, "next": ""} {
		if got := newPod(&Manager{bootID: boot}, r, nil).phase(); got != want {
			t.Errorf("boot %q: phase %q, want %q", boot, got, want)
		}
	}

	var undone []string
	undo := func(name string) func(*int, context.Context) error {
		return func(*int, context.Context) error { undone = append(undone, name); return nil }
	}

	steps := []step[*int]{{name: "first", undo: undo("first")}, {name: "last", undo: undo("last")}}
	if err := unwind(t.Context(), steps, "", new(int)); err != nil || len(undone) != 2 {
		t.Errorf("undone %q, %v", undone, err)
	}
}

// TestRecorderSyncs: the step that requires a record on disk starts after that.
func TestRecorderSyncs(t *testing.T) {
	m := &Manager{store: store{dir: t.TempDir()}}
	p := newPod(m, testRecord(t, "p1"), nil)
	if err := os.Mkdir(m.store.podDir("p1"), 0o700); err != nil {
		t.Fatal(err)
	}

	note := p.recorder()
	for _, s := range sandboxSteps {
		if err := note(s.name, s.sync); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if l := m.store.loadOne("p1"); l.err != nil || l.record.Phase != s.name {
			t.Errorf("recorded %+v, %v, want phase %q", l.record, l.err, s.name)
		}
	}
	m.wg.Wait()
}

// TestLoadRemovesWhatNeverWas creates the directory of a pod that a killed
// daemon was about to create.
func TestLoadRemovesWhatNeverWas(t *testing.T) {
	s := store{dir: t.TempDir()}
	if err := os.Mkdir(s.podDir("begun"), 0o700); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(s.podDir("begun"), ".durable-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := s.load()
	if err != nil || len(list) != 0 {
		t.Errorf("loaded %v, %v, want nothing", list, err)
	}

	if _, err := os.Stat(s.podDir("begun")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestEditLeavesThePublishedRecordAlone(t *testing.T) {
	r := testRecord(t, "p1")
	next := r.clone()
	if !next.edit("c1", func(c *Container) { c.FinishedAt = 10 }) {
		t.Fatal("container not found")
	}
	next.drop("c1")
	if c := r.Container("c1"); c == nil || c.FinishedAt != 0 {
		t.Errorf("published record changed: %+v", c)
	}
	if next.Container("c1") != nil {
		t.Error("container not dropped")
	}
}

func TestState(t *testing.T) {
	for name, tc := range map[string]struct {
		c    Container
		want runtimeapi.ContainerState
	}{
		"being made": {Container{Phase: "make spec"}, runtimeapi.ContainerState_CONTAINER_UNKNOWN},
		"created":    {Container{Phase: phaseReady}, runtimeapi.ContainerState_CONTAINER_CREATED},
		"running":    {Container{Phase: phaseReady, StartedAt: 1}, runtimeapi.ContainerState_CONTAINER_RUNNING},
		"exited":     {Container{Phase: phaseReady, StartedAt: 1, FinishedAt: 2}, runtimeapi.ContainerState_CONTAINER_EXITED},
	} {
		if got := tc.c.State(); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestJudgeSandbox(t *testing.T) {
	whole := facts{sameBoot: true, held: true}
	for name, tc := range map[string]struct {
		phase string
		pause bool
		f     facts
		want  verdict
	}{
		"ready":                {phaseReady, false, whole, keepPod},
		"ready with pause":     {phaseReady, true, whole, keepPod},
		"pause gone":           {phaseReady, true, facts{sameBoot: true, held: true, pauseEnded: true}, unreadyPod},
		"no pause to be gone":  {phaseReady, false, facts{sameBoot: true, held: true, pauseEnded: true}, keepPod},
		"namespaces gone":      {phaseReady, false, facts{sameBoot: true}, unreadyPod},
		"after a reboot":       {phaseReady, false, facts{held: true}, unreadyPod},
		"stopped":              {phaseStopped, false, facts{}, keepPod},
		"stop was cut short":   {phaseStopping, false, facts{}, keepPod},
		"run was cut short":    {"attach network", false, whole, undoPod},
		"cut short and reboot": {"make files", false, facts{}, undoPod},
	} {
		r := &Record{Phase: tc.phase}
		if tc.pause {
			r.Pause = &Process{Pid: 1}
		}
		if got := judgeSandbox(r, tc.f); got != tc.want {
			t.Errorf("%s: verdict %d, want %d", name, got, tc.want)
		}
	}
}

func TestJudgeContainer(t *testing.T) {
	running := &client.Entry{ID: "c"}
	ended := &client.Entry{ID: "c", Exit: &client.Exit{Code: 3}}
	for name, tc := range map[string]struct {
		c        Container
		sameBoot bool
		e        *client.Entry
		alive    bool
		want     containerVerdict
	}{
		"created":                      {Container{Phase: phaseReady}, true, nil, false, keepContainer},
		"create cut short":             {Container{Phase: "make spec"}, true, nil, false, undoContainer},
		"left over":                    {Container{Phase: "make spec", Left: true}, true, nil, false, keepContainer},
		"running":                      {Container{Phase: phaseReady, StartedAt: 1}, true, running, false, adoptContainer},
		"start was not recorded":       {Container{Phase: phaseReady}, true, running, false, adoptContainer},
		"ended meanwhile":              {Container{Phase: phaseReady, StartedAt: 1}, true, ended, false, endContainer},
		"ended before it was reported": {Container{Phase: phaseReady}, true, ended, false, endContainer},
		"holder gone":                  {Container{Phase: phaseReady, StartedAt: 1}, true, nil, false, loseContainer},
		"holder of a start gone":       {Container{Phase: phaseReady}, true, nil, true, loseContainer},
		"after a reboot":               {Container{Phase: phaseReady, StartedAt: 1}, false, nil, false, loseContainer},
		"exited":                       {Container{Phase: phaseReady, StartedAt: 1, FinishedAt: 2}, true, ended, false, keepContainer},
	} {
		if got := judgeContainer(&tc.c, tc.sameBoot, tc.e, tc.alive); got != tc.want {
			t.Errorf("%s: verdict %d, want %d", name, got, tc.want)
		}
	}
}
