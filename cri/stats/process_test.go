package stats

import (
	"context"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"crisp/runtime/rootpath"
)

// openMany opens as many descriptors as this process may have, n at most, and
// returns their number.
func openMany(t *testing.T, n int) int {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}

	n = min(n, int(old.Max)-1000)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(n + 1000), Max: old.Max}); err != nil {
		t.Fatal(err)
	}

	var fds []int
	t.Cleanup(func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})

	for range n {
		fd, err := syscall.Dup(0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}

	return n
}

// The cost of counting a container's descriptors does not grow with their
// number.
func TestCountOpen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	self := []int{os.Getpid()}
	before := countOpen(self)
	if before.files < 4 || before.sockets == 0 {
		t.Errorf("%+v for the standard streams and a listener", before)
	}

	many := openMany(t, 100_000)
	start := time.Now()
	after := countOpen(self)
	took := time.Since(start)
	t.Logf("%d descriptors counted in %v", after.files, took)

	if got := after.files - before.files; got < uint64(many) || got > uint64(many)+50 {
		t.Errorf("%d descriptors more, of %d", got, many)
	}
	if took > 2*time.Second {
		t.Errorf("counting took %v", took)
	}

	// Processes that exited meanwhile have none.
	if got := countOpen([]int{1 << 30}); got != (counts{}) {
		t.Errorf("%+v for an exited process", got)
	}

	crowd := make([]int, 10*maxProcesses)
	for i := range crowd {
		crowd[i] = os.Getpid()
	}
	if got := countOpen(crowd).files; got < 9*maxProcesses*after.files || got > 11*maxProcesses*after.files {
		t.Errorf("%d descriptors of %d processes with %d each", got, len(crowd), after.files)
	}
}

// A slow walk of a layer is cut short, and the layer is walked separately:
// others are measured as often as before.
func TestSlowLayersDelayNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l layers
		l.init(10 * time.Second)
		l.measure = func(ctx context.Context, dir string) (rootpath.Usage, error) {
			if dir == "quick" {
				return rootpath.Usage{Bytes: 1, Inodes: 1}, nil
			}
			<-ctx.Done()
			return rootpath.Usage{Bytes: 5, Inodes: 5, Partial: true}, context.Cause(ctx)
		}

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.run(ctx, func() map[string]string {
				return map[string]string{"a": "slow", "b": "slow", "c": "quick", "d": "slow"}
			})
		}()

		time.Sleep(time.Minute) // each was found to be slow
		for range 30 {
			time.Sleep(time.Minute)
			for id, most := range map[string]time.Duration{"a": time.Hour, "b": time.Hour, "c": 12 * time.Second, "d": time.Hour} {
				u, ok := l.usage(ctx, id, "known", time.Now())
				if !ok || time.Since(u.at) > most {
					t.Fatalf("the size of %s is %v old", id, time.Since(u.at))
				}
			}
		}
		cancel()
		<-done
	})
}

// A partial count never makes a size smaller.
func TestPartialLayer(t *testing.T) {
	at := time.Now()
	e := &layer{}
	e.take(rootpath.Usage{Bytes: 100, Inodes: 10}, nil, at)
	e.take(rootpath.Usage{Bytes: 60, Inodes: 12, Partial: true}, os.ErrDeadlineExceeded, at)

	if e.usage != (usage{bytes: 100, inodes: 12, at: at}) || !e.partial {
		t.Errorf("after a walk cut short: %+v", e.usage)
	}
	e.take(rootpath.Usage{Partial: true}, os.ErrNotExist, at.Add(time.Second))

	if e.usage.bytes != 100 || e.usage.at != at {
		t.Errorf("after no walk: %+v", e.usage)
	}
	e.take(rootpath.Usage{Bytes: 60, Inodes: 6}, nil, at)

	if e.usage.bytes != 60 || e.partial {
		t.Errorf("after a whole walk: %+v", e.usage)
	}
}

// TestMaxOpenFiles asks for the limit in both ways.
func TestMaxOpenFiles(t *testing.T) {
	limit, ok := maxOpenFiles(os.Getpid())
	listed, lok := listedOpenFiles(os.Getpid())
	if !ok || !lok || limit != listed || limit == 0 {
		t.Errorf("limit %d, %v; in /proc %d, %v", limit, ok, listed, lok)
	}
	if _, ok := maxOpenFiles(0); ok {
		t.Error("no process has a limit")
	}
}
