package spawn

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// TestLastReportIsReceived has a child end right after its last report, often
// enough for both to come between the kernel's look for a packet and its look for
// the end of the connection.
func TestLastReportIsReceived(t *testing.T) {
	const rounds = 30_000
	lost := 0
	for range rounds {
		ours, childs, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ours.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}

		sent := make(chan error, 1)
		go func() {
			_, err := unix.Write(int(childs.Fd()), make([]byte, reportWords*4))
			childs.Close()
			sent <- err
		}()

		// The poller would wait for the packet; a caller that has just received
		// another one asks at once, as here.
		c := &Child{plan: &plan.Plan{Name: "start"}, sock: ours, raw: polling{raw}, fork: -1}
		p, ended, err := c.receive()
		if err != nil || ended || p.bad != nil {
			lost++
		}
		if _, ended, err := c.receive(); err != nil || !ended {
			t.Fatalf("after the last report: ended %v, %v", ended, err)
		}

		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if lost > 0 {
		t.Errorf("%d of %d last reports were lost", lost, rounds)
	}
}

// polling asks again at once where another connection would wait.
type polling struct{ syscall.RawConn }

func (p polling) Read(f func(fd uintptr) bool) error {
	return p.Control(func(fd uintptr) {
		for !f(fd) {
		}
	})
}
