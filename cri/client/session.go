package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// protocol is the version of the remote command protocol that reports exit codes
// and takes the size of a terminal.
const protocol = remotecommand.StreamProtocolV4Name

// maxStatus bounds the message that ends a session, in bytes.
const maxStatus = 64 << 10

// Size is that of a terminal.
type Size struct{ Width, Height uint16 }

// Streams are what a session connects. Those that are nil are not; with a terminal
// there is no standard error.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// TTY means that the command has a terminal, to which Sizes are sent; nil for
	// none.
	TTY   bool
	Sizes <-chan Size
}

// Session runs an exec or attach session, at a URL that the daemon has given out,
// and returns the exit code of its command. The copy of the input is not waited
// for: nothing can interrupt a read from a terminal.
func Session(ctx context.Context, url string, s Streams) (code int, err error) {
	conn, err := upgrade(ctx, url)
	if err != nil {
		return 0, fmt.Errorf("open a session with the container: %w", err)
	}
	var once sync.Once
	closeConn := func() { once.Do(func() { conn.Close() }) }
	defer closeConn()
	defer context.AfterFunc(ctx, closeConn)()

	status, err := open(conn, remotecommand.StreamTypeError)
	if err != nil {
		return 0, err
	}
	outputs, err := connect(conn, s)
	if err != nil {
		return 0, err
	}

	outputs.Wait()
	data, err := io.ReadAll(io.LimitReader(status, maxStatus))
	if ctx.Err() != nil {
		return 0, fmt.Errorf("session with the container: %w", ctx.Err())
	}
	if err != nil {
		return 0, fmt.Errorf("session with the container: %w", err)
	}
	return verdict(data)
}

// upgrade makes a connection for streams of an HTTP request.
func upgrade(ctx context.Context, url string) (httpstream.Connection, error) {
	trip, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set(httpstream.HeaderProtocolVersion, protocol)

	resp, err := trip.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return trip.NewConnection(resp)
}

// open opens a stream of a kind.
func open(conn httpstream.Connection, kind string) (httpstream.Stream, error) {
	stream, err := conn.CreateStream(http.Header{http.CanonicalHeaderKey(remotecommand.StreamType): {kind}})
	if err != nil {
		return nil, fmt.Errorf("open the %s stream of a session: %w", kind, err)
	}
	return stream, nil
}

// connect copies the streams of a session. The result ends with the output.
func connect(conn httpstream.Connection, s Streams) (*sync.WaitGroup, error) {
	var outputs sync.WaitGroup
	if s.Stdin != nil {
		in, err := open(conn, remotecommand.StreamTypeStdin)
		if err != nil {
			return nil, err
		}
		go func() {
			_, _ = io.Copy(in, s.Stdin) // ends with the session, too
			in.Close()
		}()
	}

	for kind, w := range map[string]io.Writer{remotecommand.StreamTypeStdout: s.Stdout, remotecommand.StreamTypeStderr: s.Stderr} {
		if w == nil {
			continue
		}
		out, err := open(conn, kind)
		if err != nil {
			return nil, err
		}
		outputs.Go(func() { _, _ = io.Copy(w, out) })
	}

	if s.TTY { // then the server waits for this stream
		sizes, err := open(conn, remotecommand.StreamTypeResize)
		if err != nil {
			return nil, err
		}
		go func() {
			for e := json.NewEncoder(sizes); ; {
				size, ok := <-s.Sizes
				if !ok || e.Encode(size) != nil {
					return
				}
			}
		}()
	}
	return &outputs, nil
}

// verdict is what the server reports at the end of a session, a Kubernetes Status.
func verdict(data []byte) (code int, err error) {
	var status metav1.Status
	if len(data) == 0 {
		return 0, errors.New("the session with the container has ended early: see the daemon's log")
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return 0, fmt.Errorf("read the end of the session %q: %w", data, err)
	}

	if status.Details != nil {
		for _, cause := range status.Details.Causes {
			if cause.Type == remotecommand.ExitCodeCauseType {
				return strconv.Atoi(cause.Message)
			}
		}
	}
	if status.Status != metav1.StatusSuccess {
		return 0, errors.New(status.Message)
	}
	return 0, nil
}
