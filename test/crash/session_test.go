//go:build crash

package crash

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"crisp/network/netns"
)

// Kinds of sessions.
const (
	execSession    = "exec"
	attachSession  = "attach"
	forwardSession = "port-forward"
)

const (
	// hangTime bounds how long after its cause the end of a session reaches the
	// client.
	hangTime = 10 * time.Second
	// sessionPort is the port in the pod at which a test echoes.
	sessionPort = 7777
)

// talker is a container's command that prints all the time. Its text does not
// contain "sleep 1000", which tests look for with ps.
const talker = "while :; do echo tick; sleep 0.05; done & exec sleep $((999+1))"

var errNoSession = errors.New("the session does not work")

// session is a client of an open session.
type session struct {
	kind string
	// pod and container are the IDs of its peer.
	pod, container string
	conn           httpstream.Connection
	in             io.Writer
	out            *bufio.Reader
	server         net.Listener // for port-forward
	serving        sync.WaitGroup
}

// open opens a session of a kind with a pod or a container.
func (n *node) open(t *testing.T, kind, pod, container string) (_ *session, err error) {
	s := &session{kind: kind, pod: pod, container: container}
	defer func() {
		if err != nil {
			s.close()
		}
	}()

	var url, protocol string
	switch kind {
	case execSession:
		// cat ends with its input, and so with the client's connection.
		r, err := try(t, n.Runtime.Exec, &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"cat"}, Stdin: true, Stdout: true})
		if err != nil {
			return nil, err
		}
		url, protocol = r.Url, "v4.channel.k8s.io"
	case attachSession:
		r, err := try(t, n.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: container, Stdout: true})
		if err != nil {
			return nil, err
		}
		url, protocol = r.Url, "v4.channel.k8s.io"
	case forwardSession:
		if err := s.serve(n); err != nil {
			return nil, err
		}
		r, err := try(t, n.Runtime.PortForward, &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{sessionPort}})
		if err != nil {
			return nil, err
		}
		url, protocol = r.Url, "portforward.k8s.io"
	}
	if s.conn, err = dial(url, protocol); err != nil {
		return nil, err
	}
	if err := s.streams(); err != nil {
		return nil, err
	}

	return s, s.works()
}

// serve echoes at a port in the pod's network namespace.
func (s *session) serve(n *node) error {
	listen := func() (err error) {
		s.server, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", sessionPort))
		return err
	}

	pin := filepath.Join(n.Dir, "state/netns", "crisp-"+s.pod[:20])
	ns, err := netns.Open(pin)
	if err != nil {
		return err
	}
	defer ns.Close()

	if err := netns.Do(ns, listen); err != nil {
		return err
	}
	s.serving.Go(func() {
		for {
			c, err := s.server.Accept()
			if err != nil {
				return
			}
			s.serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the other end is closed
			})
		}
	})

	return nil
}

func dial(url, protocol string) (httpstream.Connection, error) {
	trip, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}

	req, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}

	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := trip.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return trip.NewConnection(resp)
}

// streams opens the streams of the session.
func (s *session) streams() error {
	kinds := map[string][]string{
		execSession: {"error", "stdin", "stdout"}, attachSession: {"error", "stdout"}, forwardSession: {"error", "data"},
	}[s.kind]
	for _, kind := range kinds {
		h := http.Header{"Streamtype": {kind}}
		if s.kind == forwardSession {
			h.Set("port", fmt.Sprint(sessionPort))
			h.Set("requestID", "1")
		}

		stream, err := s.conn.CreateStream(h)
		if err != nil {
			return err
		}

		switch kind {
		case "error": // the protocol blocks if it is not read
			s.serving.Go(func() { _, _ = io.Copy(io.Discard, stream) })
		case "stdin":
			s.in = stream
		case "stdout":
			s.out = bufio.NewReader(stream)
		case "data":
			s.in, s.out = stream, bufio.NewReader(stream)
		}
	}

	return nil
}

// works sends a line and waits for its echo, or for a line of the container's
// output.
func (s *session) works() error {
	reply := make(chan error, 1)
	go func() {
		want := "tick\n"
		if s.in != nil {
			want = fmt.Sprintln(time.Now())
			if _, err := io.WriteString(s.in, want); err != nil {
				reply <- err
				return
			}
		}

		line, err := s.out.ReadString('\n')
		line = strings.ReplaceAll(line, "\r", "") // of a terminal
		// An attached client may start in the middle of a line, also after the
		// keeper was replaced.
		if err == nil && s.in != nil && line != want {
			err = fmt.Errorf("%w: got %q, want %q", errNoSession, line, want)
		}
		reply <- err
	}()

	select {
	case err := <-reply:
		return err
	case <-time.After(hangTime):
		s.conn.Close()
		<-reply
		return fmt.Errorf("%w: no response in %v", errNoSession, hangTime)
	}
}

// ends reports whether the session ends by itself.
func (s *session) ends() bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, s.out) // only its end matters
	}()

	defer s.close()
	select {
	case <-ended:
		return true
	case <-time.After(hangTime):
		s.conn.Close()
		<-ended
		return false
	}
}

func (s *session) close() {
	if s.conn != nil {
		_ = s.conn.Close() // it may have ended
	}
	if s.server != nil {
		s.server.Close()
	}
	s.serving.Wait()
}

// sessions opens one of each kind that a scene can have.
func (s *scene) sessions() []*session {
	s.t.Helper()
	var all []*session
	for _, kind := range s.sessionKinds() {
		one, err := s.n.open(s.t, kind, s.podID, s.containerID)
		if err != nil {
			s.t.Fatalf("%s: %v", kind, err)
		}
		all = append(all, one)
	}
	return all
}

func (s *scene) sessionKinds() []string {
	all := []string{execSession}
	if s.container.Command[0] == "sh" {
		all = append(all, attachSession)
	}
	pods := s.pods()
	if ready := len(pods) == 1 && pods[0].State == runtimeapi.PodSandboxState_SANDBOX_READY; ready && !s.hostNetwork() {
		all = append(all, forwardSession)
	}
	return all
}

// wantSessions checks that sessions have ended if the daemon or the container was
// killed, and work otherwise. What the end of a pod means for a forwarded port is
// open. New sessions must work.
func (s *scene) wantSessions(open []*session, daemonKilled bool) {
	s.t.Helper()
	runs := s.runs()
	for _, one := range open {
		err := errNoSession
		if !daemonKilled && (runs || one.kind == forwardSession) {
			err = one.works()
		}
		if err != nil && !one.ends() {
			s.t.Errorf("%s does not end", one.kind)
		}
		if err != nil && !daemonKilled && runs {
			s.t.Errorf("%s did not survive the keeper: %v", one.kind, err)
		}
		one.close()
	}

	if !runs {
		return
	}
	for _, one := range s.sessions() {
		one.close()
	}
}

// maxSessions bounds how many sessions are open in the model: each is checked after
// each call.
const maxSessions = 4

// openSessions are those of the model.
type openSessions struct {
	all []opened
	// count is how many were opened, kills how often the daemon was killed.
	count, kills int
}

// opened is a session, with how often the daemon was killed before.
type opened struct {
	*session
	kills int
}

// add opens a session with a running container of a pod, if it has one.
func (o *openSessions) add(s *scene, p *modelPod, random *rand.Rand) string {
	s.t.Helper()
	i := slices.IndexFunc(p.containers[:], func(c modelContainer) bool { return p.running(&c) })
	if i < 0 || len(o.all) >= maxSessions {
		return "no session"
	}

	kind := []string{execSession, attachSession, forwardSession}[random.IntN(3)]
	if kind == forwardSession && o.has(kind, p.id) {
		return "no session" // its port is taken
	}

	one, err := s.n.open(s.t, kind, p.id, p.containers[i].id)
	if err != nil {
		s.t.Errorf("open a session, %s: %v", kind, err)
		return kind
	}

	o.count++
	o.all = append(o.all, opened{one, o.kills})
	return kind + " session"
}

func (p *modelPod) running(c *modelContainer) bool {
	return c.id != "" && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING
}

func (o *openSessions) has(kind, pod string) bool {
	return slices.ContainsFunc(o.all, func(s opened) bool { return s.kind == kind && s.pod == pod })
}

// compare checks that sessions work as long as their peer runs and the daemon was
// not killed, and have ended otherwise, as wantSessions does.
func (o *openSessions) compare(s *scene, pods []*modelPod) {
	s.t.Helper()
	o.all = slices.DeleteFunc(o.all, func(one opened) bool {
		runs := slices.ContainsFunc(pods, func(p *modelPod) bool { return p.serves(one.session) })
		killed := one.kills < o.kills
		switch {
		case killed, !runs && one.kind != forwardSession:
			if !one.ends() {
				s.t.Errorf("%s does not end", one.kind)
			}
			return true
		case !runs:
			one.close()
			return true
		}

		if err := one.works(); err != nil {
			s.t.Errorf("%s: %v", one.kind, err)
			one.close()
			return true
		}
		return false
	})
}

// serves reports whether the pod, in its present state, is a session's peer.
func (p *modelPod) serves(s *session) bool {
	if p.id != s.pod || !p.ready {
		return false
	}
	return s.kind == forwardSession || slices.ContainsFunc(p.containers[:], func(c modelContainer) bool {
		return c.id == s.container && p.running(&c)
	})
}

func (o *openSessions) closeAll() {
	for _, one := range o.all {
		one.close()
	}
	o.all = nil
}
