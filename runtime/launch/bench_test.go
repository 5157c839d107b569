package launch

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
)

// withKeeper replaces the lab's keeper by a real one.
func (b *lab) withKeeper() *client.Client {
	b.t.Helper()
	dir := b.t.TempDir()
	binary := filepath.Join(dir, "crisp-keeper")
	if out, err := exec.Command("go", "build", "-o", binary, "crisp/cmd/crisp-keeper").CombinedOutput(); err != nil {
		b.t.Fatalf("build keeper: %v\n%s", err, out)
	}
	k, err := client.Connect(b.t.Context(), dir, binary)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { k.Close() })
	b.l.keeper = k
	return k
}

// finish waits for the exit of a process that a real keeper runs.
func finish(t testing.TB, k *client.Client, id string) client.Exit {
	t.Helper()
	select {
	case x := <-k.Events():
		if err := k.Forget(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return x
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
	}
	return client.Exit{}
}

// report reports the median and the tail of the measured times.
func report(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*95/100].Microseconds()), "p95-µs")
}

// startRequest is the request for a container in a pod.
func startRequest(b *testing.B, id string, s *specs.Spec, held Held) Request {
	b.Helper()
	hierarchies, err := shown()
	if err != nil {
		b.Fatal(err)
	}
	return Request{ID: id, Name: "start", Spec: s, Held: held, InPod: true, Hierarchies: hierarchies}
}

// timeStart returns how long it takes to start a container of a spec and hooks, which
// has exited then.
func (l *lab) timeStart(b *testing.B, k *client.Client, s *specs.Spec, hooks *Hooks) time.Duration {
	b.Helper()
	held := Held{"rootfs": l.rootfs(nil)}
	for name, f := range l.pod {
		held[name] = f
	}
	defer held["rootfs"].Close()

	r := startRequest(b, "c"+strconv.Itoa(l.n), s, held)
	r.Hooks = hooks
	begin := time.Now()
	c, err := l.l.Container(b.Context(), r)
	took := time.Since(begin)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	finish(b, k, r.ID)
	return took
}

// BenchmarkStart measures a container's start by a real keeper, from the
// spec to execve.
func BenchmarkStart(b *testing.B) {
	for _, tt := range []struct {
		name   string
		pod    plan.SandboxOptions
		change func(*specs.Spec)
	}{
		{"default", usual(), nil},
		{"user-namespace", usersOwn(), nil},
		{"unmasked", usual(), func(s *specs.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil }},
		{"no-cgroup-view", usual(), func(s *specs.Spec) { s.Mounts = s.Mounts[:6] }},
	} {
		b.Run(tt.name, func(b *testing.B) {
			lab := newLab(b)
			k := lab.withKeeper()
			lab.sandbox(tt.pod)
			defer func() {
				if err := k.Forget(b.Context(), "pod"); err != nil {
					b.Error(err)
				}
			}()

			s := lab.spec("")
			s.Process.Args = []string{"/bin/busybox", "true"}
			if tt.change != nil {
				tt.change(s)
			}

			var times []time.Duration
			for b.Loop() {
				times = append(times, lab.timeStart(b, k, s, nil))
			}
			report(b, times)
		})
	}
}

// BenchmarkExec measures how long it takes to execute a process in a container.
func BenchmarkExec(b *testing.B) {
	lab := newLab(b)
	k := lab.withKeeper()
	lab.sandbox(usual())
	s := lab.spec("")
	s.Process.Args = []string{"/bin/sleep", "1000"}

	held := Held{"rootfs": lab.rootfs(nil)}
	for name, f := range lab.pod {
		held[name] = f
	}

	c, err := lab.l.Container(b.Context(), startRequest(b, "c", s, held))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()

	p := *s.Process
	p.Args = []string{"/bin/busybox", "true"}
	var times []time.Duration
	for n := 0; b.Loop(); n++ {
		id := "e" + strconv.Itoa(n)
		begin := time.Now()
		e, err := lab.l.Exec(b.Context(), Request{ID: id, Name: "exec", Spec: s, Process: &p, Held: Held{"pidfd": c.PidFD}})
		times = append(times, time.Since(begin))
		if err != nil {
			b.Fatal(err)
		}

		finish(b, k, id)
		e.Close()
	}

	report(b, times)
	if err := signalKill(c); err != nil {
		b.Error(err)
	}

	finish(b, k, "c")
	if err := k.Forget(b.Context(), "pod"); err != nil {
		b.Error(err)
	}
}

// BenchmarkSandbox measures the creation of a pod's namespaces.
func BenchmarkSandbox(b *testing.B) {
	lab := newLab(b)
	k := lab.withKeeper()
	o := usual()
	o.Name = "make namespaces"

	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		s, err := lab.l.Sandbox(b.Context(), SandboxRequest{ID: "pod", Options: o})
		times = append(times, time.Since(begin))
		if err != nil {
			b.Fatal(err)
		}

		s.Close()
		if err := k.Forget(b.Context(), "pod"); err != nil {
			b.Fatal(err)
		}
	}

	report(b, times)
}

// BenchmarkHooks measures what a hook that does nothing adds to a start, of each kind:
// the medians of starts without and with it, and of its program by itself, in turn, so
// that what else the machine does affects all of them.
func BenchmarkHooks(b *testing.B) {
	const program = "/bin/true"
	lab := newLab(b)
	h := newHookLab(lab)
	k := lab.withKeeper()
	lab.sandbox(usual())
	defer func() {
		if err := k.Forget(b.Context(), "pod"); err != nil {
			b.Error(err)
		}
	}()

	// As in the daemon, the keeper forgets a hook while the start goes on.
	var forgotten sync.WaitGroup
	defer forgotten.Wait()
	hooks := 0
	run := func(ctx context.Context, _ hook.Hook, r client.Request, _ func() string) (client.Exit, error) {
		hooks++
		r.ID = "hook-" + strconv.Itoa(hooks)
		c, err := k.Start(ctx, r)
		if err != nil {
			return client.Exit{}, err
		}
		defer c.Close()
		exit := <-k.Events()
		forgotten.Go(func() {
			if err := k.Forget(b.Context(), r.ID); err != nil {
				b.Error(err)
			}
		})
		return exit, nil
	}

	kinds := []hook.Kind{"", hook.CreateRuntime, hook.CreateContainer, hook.StartContainer}
	times := map[hook.Kind][]time.Duration{}
	var alone []time.Duration
	for b.Loop() {
		begin := time.Now()
		if err := exec.Command(program).Run(); err != nil {
			b.Fatal(err)
		}
		alone = append(alone, time.Since(begin))

		for _, kind := range kinds {
			s := lab.spec("")
			s.Process.Args = []string{"/bin/busybox", "true"}
			if kind == "" {
				times[kind] = append(times[kind], lab.timeStart(b, k, s, nil))
				continue
			}
			hook.Add(s, nil, hook.Hook{Kind: kind, Hook: specs.Hook{Path: program}}) // the image has one, too
			hs := h.hooks(s)
			hs.Run = run
			times[kind] = append(times[kind], lab.timeStart(b, k, s, hs))
		}
	}

	b.ReportMetric(float64(median(alone).Microseconds()), "alone-µs")
	none := median(times[""])
	b.ReportMetric(float64(none.Microseconds()), "none-µs")
	for _, kind := range kinds[1:] {
		b.ReportMetric(float64((median(times[kind]) - none).Microseconds()), string(kind)+"-adds-µs")
		b.ReportMetric(float64(median(times[kind]))/float64(none), string(kind)+"-ratio")
	}
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}
