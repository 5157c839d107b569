package stream

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// session is a client's end of a SPDY connection.
type session struct {
	httpstream.Connection
	t       testing.TB
	limit   *time.Timer
	streams map[string]httpstream.Stream
}

// dial connects to a URL that the server gave out.
func dial(t testing.TB, url, protocol string) *session {
	t.Helper()
	trip, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}

	req, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}

	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := trip.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	conn, err := trip.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	return sessionOn(t, conn)
}

// sessionOn is the client's end of an open connection.
func sessionOn(t testing.TB, conn httpstream.Connection) *session {
	// A client that waits in vain must fail its test, not block it.
	limit := time.AfterFunc(60*time.Second, func() { conn.Close() })
	s := &session{Connection: conn, t: t, limit: limit, streams: map[string]httpstream.Stream{}}
	t.Cleanup(func() { s.Close() })
	return s
}

// Close ends the session. A test keeps what it cleans up until it ends, so the
// connection, with compressors of most of a megabyte, is given up here.
func (s *session) Close() error {
	if s.Connection == nil {
		return nil
	}
	s.limit.Stop()
	conn := s.Connection
	s.Connection, s.streams, s.limit = nil, nil, nil
	return conn.Close()
}

// open opens a stream with the headers given as pairs.
func (s *session) open(kind string, headers ...string) httpstream.Stream {
	s.t.Helper()
	h := http.Header{"Streamtype": {kind}}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	stream, err := s.CreateStream(h)
	if err != nil {
		s.t.Fatal(err)
	}
	s.streams[kind] = stream
	return stream
}

// read reads a stream to its end.
func (s *session) read(kind string) string {
	s.t.Helper()
	data, err := io.ReadAll(s.streams[kind])
	if err != nil {
		s.t.Fatalf("read %s: %v", kind, err)
	}
	return string(data)
}

// end returns what the server reports as the end of a command: "Success", an
// exit code, or a message.
func (s *session) end() string {
	s.t.Helper()
	var status struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}

	text := s.read("error")
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&status); err != nil {
		s.t.Fatalf("status %q: %v", text, err)
	}

	if status.Reason == "NonZeroExitCode" && len(status.Details.Causes) == 1 && status.Details.Causes[0].Reason == "ExitCode" {
		return "exit code " + status.Details.Causes[0].Message
	}
	if status.Message != "" {
		return status.Message
	}
	return status.Status
}

// forward opens a pair of streams to a port of the pod.
func (s *session) forward(port, id int) (data, failure httpstream.Stream) {
	s.t.Helper()
	failure = s.open("error", "port", fmt.Sprint(port), "requestID", fmt.Sprint(id))
	failure.Close()
	return s.open("data", "port", fmt.Sprint(port), "requestID", fmt.Sprint(id)), failure
}

// wantEchoes forwards twenty connections to a port, one after the other, whose
// server echoes, and requires all of so many bytes, or twice as many, and no
// error.
func (s *session) wantEchoes(port, size int) {
	s.t.Helper()
	for i := range 20 {
		data, failure := s.forward(port, i)
		want := strings.Repeat(fmt.Sprint(i), size)
		go func() {
			io.WriteString(data, want)
			data.Close()
		}()

		got, err := io.ReadAll(data)
		if err != nil || string(got) != want {
			s.t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
		}
		if said, err := io.ReadAll(failure); err != nil || len(said) > 0 {
			s.t.Errorf("stream %d: server says %q, %v", i, said, err)
		}
	}
}
