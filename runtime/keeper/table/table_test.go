package table

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/orphan"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// fake is a keeper that records what it is given.
type fake struct {
	mu      sync.Mutex
	has     []client.Entry
	adopted []client.Adoption
	fails   error
	// noLogs is why it refuses whatever has a log.
	noLogs error
}

func (f *fake) List(context.Context) ([]client.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.has), f.fails
}

func (f *fake) Adopt(_ context.Context, a client.Adoption) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.has {
		if e.ID == a.ID {
			return client.ErrExists
		}
	}
	if f.noLogs != nil && a.Log != nil {
		return f.noLogs
	}
	if f.fails == nil {
		f.adopted = append(f.adopted, a)
		f.has = append(f.has, client.Entry{ID: a.ID, Kind: a.Kind})
	}
	return f.fails
}

// ids are what the keeper was given.
func (f *fake) ids() (list []string) {
	for _, a := range f.adopted {
		list = append(list, a.ID)
	}
	slices.Sort(list)
	return list
}

// scene is a table with a keeper to come.
type scene struct {
	*Table
	next  *fake
	exits map[string]client.Exit
	ended []client.Exit
	lost  []error
}

func newScene() *scene {
	s := &scene{next: &fake{}, exits: map[string]client.Exit{}}
	s.Table = &Table{
		retry:         func(_ context.Context, request func(keeper) error) error { return request(s.next) },
		recordedExits: func() (map[string]client.Exit, error) { return s.exits, nil },
		reaper:        orphan.New(), rows: map[string]*Row{},
		unknown: func(e client.Exit) { s.ended = append(s.ended, e) },
	}
	return s
}

func (s *scene) hooks() Hooks {
	return Hooks{
		Ended: func(e client.Exit) { s.ended = append(s.ended, e) },
		Lost:  func(err error) { s.lost = append(s.lost, err) },
	}
}

// process starts a program and returns it as a keeper would.
func process(t *testing.T) *client.Started {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	st := &client.Started{Pid: cmd.Process.Pid, PidFD: os.NewFile(uintptr(fd), "pidfd")}
	t.Cleanup(func() {
		st.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return st
}

// TestLogIsRefused has a keeper refuse a row for its log: it gets the process alone,
// and the daemon is told.
func TestLogIsRefused(t *testing.T) {
	refused := errors.New("read-only file system")
	s := newScene()
	row := s.Begin("web", client.Container, s.hooks())
	st := process(t)
	if err := row.Started(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	row.log = &client.LogConfig{}

	s.next.noLogs = refused
	s.handOver(t.Context(), s.next)
	if len(s.next.adopted) != 1 || s.next.adopted[0].Log != nil || s.next.adopted[0].Pid != st.Pid {
		t.Errorf("the keeper was given %+v, want the process without a log", s.next.adopted)
	}
	if len(s.lost) != 1 || !errors.Is(s.lost[0], refused) {
		t.Errorf("the daemon was told %v, want %v", s.lost, refused)
	}

	s.next = &fake{}
	s.handOver(t.Context(), s.next)
	if len(s.next.adopted) != 1 || s.next.adopted[0].Log == nil {
		t.Errorf("the next keeper was given %+v, want the log too", s.next.adopted)
	}
}

// TestKeeperConnectsAtAnyTime has keepers connect at any time of a start: each
// is handed the started process once, by the table or by the start.
func TestKeeperConnectsAtAnyTime(t *testing.T) {
	for _, kind := range []client.Kind{client.Container, client.Exec} {
		for name, keepers := range map[string][2]int{
			"none": {0, 0}, "one before the answer": {1, 0}, "two before the answer": {2, 0},
			"one after it": {0, 1}, "before and after it": {1, 1},
		} {
			t.Run(kind.String()+" "+name, func(t *testing.T) {
				s := newScene()
				r := s.Begin("it", kind, s.hooks())
				for range keepers[0] {
					s.handOver(t.Context(), s.next)
				}
				if got := s.next.ids(); len(got) > 0 {
					t.Fatalf("handed over %v before it had started", got)
				}

				if err := r.Started(t.Context(), process(t)); err != nil {
					t.Fatal(err)
				}
				for range keepers[1] {
					s.handOver(t.Context(), s.next)
				}

				want := min(1, keepers[0]+keepers[1])
				if got := s.next.ids(); len(got) != want {
					t.Errorf("handed over %v, want %d", got, want)
				}
				r.Drop()
				if s.row("it") != nil {
					t.Error("a dropped row is still there")
				}
			})
		}
	}
}

// TestHandOver checks what a new keeper gets of each kind of row.
func TestHandOver(t *testing.T) {
	s := newScene()
	begin := func(id string, kind client.Kind) *Row {
		r := s.Begin(id, kind, s.hooks())
		if err := r.Started(t.Context(), process(t)); err != nil {
			t.Fatal(err)
		}
		return r
	}

	log := &client.LogConfig{}
	begin("runs", client.Container).Hold(log, func() []client.Named { return []client.Named{{Name: "stdin"}} })
	begin("held", client.Container)
	begin("ended", client.Container).End()
	begin("abandoned", client.Container).Abandon()
	begin("recorded", client.Exec)
	begin("reported", client.Exec)
	begin("dropped", client.Exec).Drop()
	pod := s.Begin("pod", client.Sandbox, s.hooks())
	namespaces := map[string]*os.File{"net": nil}
	if err := pod.Started(t.Context(), &client.Started{Pid: 1, PidFD: os.Stdin, Namespaces: namespaces}); err != nil {
		t.Fatal(err)
	}
	pod.End()

	s.exits["recorded"] = client.Exit{ID: "recorded", Code: 3}
	s.next.has = []client.Entry{{ID: "held"}, {ID: "reported", Exit: &client.Exit{ID: "reported", Code: 4}}}
	s.handOver(t.Context(), s.next)

	if got, want := s.next.ids(), []string{"pod", "runs"}; !slices.Equal(got, want) {
		t.Fatalf("handed over %v, want %v", got, want)
	}
	for _, a := range s.next.adopted {
		switch a.ID {
		case "runs":
			if a.PidFD == nil || a.Log != log || len(a.Keep) != 1 {
				t.Errorf("container handed over as %+v", a)
			}
		case "pod":
			if a.PidFD != nil || a.Pid != 0 || len(a.Namespaces) != 1 {
				t.Errorf("pod handed over as %+v", a)
			}
		}
	}

	var codes []int
	for _, e := range s.ended {
		codes = append(codes, e.Code)
	}
	if slices.Sort(codes); !slices.Equal(codes, []int{3, 4}) || len(s.lost) > 0 {
		t.Errorf("reported %v, lost %v", codes, s.lost)
	}
}

// TestExitedBeforeReply starts a process whose exit a dead keeper recorded
// before the reply to its start.
func TestExitedBeforeReply(t *testing.T) {
	s := newScene()
	r := s.Begin("it", client.Container, s.hooks())
	s.handOver(t.Context(), s.next)
	s.exits["it"] = client.Exit{ID: "it", Code: 5}
	if err := r.Started(t.Context(), process(t)); err != nil {
		t.Fatal(err)
	}
	if len(s.next.adopted) > 0 || len(s.ended) != 1 || s.ended[0].Code != 5 {
		t.Errorf("handed over %v, reported %v", s.next.ids(), s.ended)
	}
}

// TestKeeperRefuses distinguishes a keeper that refuses a row from one that is
// gone: the next one gets the row then.
func TestKeeperRefuses(t *testing.T) {
	s := newScene()
	r := s.Begin("it", client.Exec, s.hooks())
	if err := r.Started(t.Context(), process(t)); err != nil {
		t.Fatal(err)
	}

	for _, gone := range []error{client.ErrLost, errors.Join(errors.New("send"), client.ErrLost)} {
		r.handOver(t.Context(), &fake{fails: gone}, false, nil)
	}
	if len(s.lost) > 0 {
		t.Fatalf("lost with a keeper that is gone: %v", s.lost)
	}

	refused := errors.New("too many")
	r.handOver(t.Context(), &fake{fails: refused}, false, nil)
	if len(s.lost) != 1 || !errors.Is(s.lost[0], refused) {
		t.Errorf("lost %v", s.lost)
	}
}

// TestUnknownExit reports the exit of a process without a row.
func TestUnknownExit(t *testing.T) {
	s := newScene()
	s.Table.ended(client.Exit{ID: "other", Code: 9})
	if len(s.ended) != 1 || s.ended[0].Code != 9 {
		t.Errorf("reported %v", s.ended)
	}
}
