package spawn

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit"
)

func newCloner(t testing.TB) *Cloner {
	t.Helper()
	c, err := NewCloner()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// listFiles ends a plan with a shell that prints what its descriptors are.
func (p *program) listFiles() {
	p.shell("for f in /proc/$$/fd/*; do echo ${f##*/} $(readlink $f); done")
}

// TestClonerChildHasItsFiles compares children of a process with many
// descriptors: with a Cloner they have the same as without.
func TestClonerChildHasItsFiles(t *testing.T) {
	testkit.Leaks(t)
	c := newCloner(t)
	for range 200 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
	}

	stages := map[string]func(*program){
		"one stage":  func(*program) {},
		"two stages": func(p *program) { p.fork(); p.gate() },
	}
	for name, begin := range stages {
		var outputs []string
		for _, opt := range []Options{{}, {Cloner: c}} {
			p := newProgram()
			begin(p)
			p.listFiles()
			r := p.run(t, opt)
			if r.err != nil {
				t.Fatalf("%s: %v", name, r.err)
			}
			outputs = append(outputs, withoutNumbers(r.out))
		}
		if outputs[0] != outputs[1] || !strings.Contains(outputs[1], "1 pipe:") {
			t.Errorf("%s: with the cloner the child has\n%s\nwithout it\n%s", name, outputs[1], outputs[0])
		}
	}
}

// withoutNumbers drops what differs from process to process.
func withoutNumbers(list string) string {
	var b strings.Builder
	for line := range strings.Lines(list) {
		before, _, _ := strings.Cut(line, "[")
		if !strings.Contains(before, "/proc/") {
			fmt.Fprintln(&b, strings.TrimSpace(before))
		}
	}
	return b.String()
}

// TestClonerOrder passes more descriptors than a message may have, each of
// which must arrive at its place.
func TestClonerOrder(t *testing.T) {
	testkit.Leaks(t)
	const count = 2*maxPassed + 10
	p := newProgram()
	var files []int
	for i := range count {
		fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if _, err := unix.Pwrite(fd, fmt.Appendf(nil, "%03d", i), 0); err != nil {
			t.Fatal(err)
		}

		files = append(files, fd)
		p.Inputs = append(p.Inputs, plan.Input{Name: "input"})
		s := p.do("read", unix.SYS_PREAD64, plan.Arg{Kind: plan.ArgIn, Int: int64(i)}, plan.Arg{Kind: plan.ArgBuf, Int: 3}, num(3), num(0))
		s.Want = fmt.Appendf(nil, "%03d", i)
	}
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())

	child, err := Start(&p.Plan, files, Options{Cloner: newCloner(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	defer unix.Close(child.PidFD)
	if ev, err := child.Next(); err != nil || ev.Kind != Executed {
		t.Errorf("event %+v, error %v", ev, err)
	}
	if s := reap(t, child.Pid); s.ExitStatus() != 0 {
		t.Errorf("status %v", s)
	}
}

// TestClonerConcurrently clones from many goroutines, while garbage is collected
// and files are polled, which may use the thread.
func TestClonerConcurrently(t *testing.T) {
	testkit.Leaks(t)
	c := newCloner(t)
	stop := make(chan struct{})
	var busy, starts sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
				pollOnce(t)
			}
		}
	})

	for i := range 8 {
		starts.Go(func() {
			for j := range 20 {
				p := newProgram()
				p.shell(fmt.Sprintf("echo %d-%d", i, j))
				if r := p.run(t, Options{Cloner: c}); r.err != nil || r.out != fmt.Sprintf("%d-%d\n", i, j) {
					t.Errorf("got %+v", r)
				}
			}
		})
	}
	starts.Wait()
	close(stop)
	busy.Wait()
}

// pollOnce waits for a pipe by the runtime's poller.
func pollOnce(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close()
	go func() { w.Write([]byte("x")); w.Close() }()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// TestClonerAfterFailure fails to send descriptors: the next child gets none of them.
func TestClonerAfterFailure(t *testing.T) {
	testkit.Leaks(t)
	c := newCloner(t)
	fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	p := newProgram()
	files := slices.Repeat([]int{fd}, maxPassed+1)
	files[maxPassed] = 1 << 20 // in the second message
	p.Inputs = slices.Repeat([]plan.Input{{Name: "input"}}, len(files))
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
	if _, err := Start(&p.Plan, files, Options{Cloner: c}); err == nil || !strings.Contains(err.Error(), "bad file descriptor") {
		t.Fatalf("closed input: error %v", err)
	}

	p = newProgram()
	p.shell("echo still here")
	if r := p.run(t, Options{Cloner: c}); r.err != nil || r.out != "still here\n" {
		t.Errorf("got %+v", r)
	}
}

// TestClonerLeavesTheProcess checks that the process keeps its descriptors, as
// seen by others, from whichever thread the cloner is made.
func TestClonerLeavesTheProcess(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()

	for range 5 {
		c := newCloner(t)
		if link := linkOf(int(r.Fd())); !strings.HasPrefix(link, "pipe:") {
			t.Fatalf("the process's descriptor is %q", link)
		}
		p := newProgram()
		p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
		if r := p.run(t, Options{Cloner: c}); r.err != nil {
			t.Fatal(r.err)
		}
	}
}

// BenchmarkStartMany measures a start from a process with thousands of
// descriptors, with and without a Cloner.
func BenchmarkStartMany(b *testing.B) {
	RaiseFiles()
	for range 8000 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(fd)
	}

	text, err := FindText()
	if err != nil {
		b.Fatal(err)
	}
	p := newProgram()
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
	for name, opt := range map[string]Options{"plain": {Text: text}, "cloner": {Text: text, Cloner: newCloner(b)}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if r := p.run(b, opt); r.err != nil {
					b.Fatal(r.err)
				}
			}
		})
	}
}
