package nri

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"crisp/test/testkit/pace"
)

// frozen is a plugin that reads no requests any more from a moment on, as one whose
// process is stopped.
type frozen struct {
	honest
	net.Conn
	// asked is closed when it reads no more; thaw ends that.
	asked, thaw chan struct{}
}

func (f *frozen) Read(p []byte) (int, error) {
	select {
	case <-f.asked:
		<-f.thaw
	default:
	}
	return f.Conn.Read(p)
}

// TestFrozenPlugin has a plugin stop reading: what it is sent does not fit into its
// socket, which delays a container no longer than an answer that does not come.
func TestFrozenPlugin(t *testing.T) {
	for name, keep := range map[string]bool{"usual": false, "kept": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, &node{})
			f := &frozen{Conn: h.dial(t), asked: make(chan struct{}), thaw: make(chan struct{})}
			f.synced, f.closed = make(chan int, 1), make(chan struct{})
			t.Cleanup(func() { close(f.thaw) })
			s, err := stub.New(f, stub.WithPluginName("frozen"), stub.WithPluginIdx("10"), stub.WithConnection(f), stub.WithOnClose(func() {}),
				stub.WithFailurePolicy(&api.FailurePolicy{KeepConnected: keep}))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.Stop)
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			until(t, "it is connected", func() bool { return h.active.Load() == 1 })

			close(f.asked)
			v, out := example()
			v.Spec.Process.Env = []string{"A=" + strings.Repeat("x", 1<<20)}
			begin := time.Now()
			if _, err := h.Create(t.Context(), v, out); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took > pace.Scale(4*request) {
				t.Errorf("a creation took %v", took)
			}
			until(t, "it is disconnected", func() bool { _, _, err := h.ask(t); return err == nil && h.active.Load() == 0 })
		})
	}
}
