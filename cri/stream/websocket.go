package stream

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
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The channels of a WebSocket session.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	statusChannel
	resizeChannel
)

// command runs for a session's client.
type command func(ctx context.Context, in io.Reader, out, errw io.WriteCloser, resize <-chan remotecommand.TerminalSize) error

// serveWebSocket serves a session by version 5 of the WebSocket protocol, in
// which a client can close its input; the protocol's own code serves the older
// versions.
func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request, o *remotecommand.Options, run command) {
	session := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels(o)},
	})
	session.SetIdleTimeout(s.options.IdleTimeout)

	_, streams, err := session.Open(w, r)
	if err != nil {
		return // Open has responded
	}

	var resizes sync.WaitGroup
	defer resizes.Wait()
	defer session.Close()

	// The client waits for a first message.
	var in io.Reader
	var out, errw io.WriteCloser
	first := statusChannel

	if o.Stderr {
		errw, first = streams[stderrChannel], stderrChannel
	}
	if o.Stdout {
		out, first = streams[stdoutChannel], stdoutChannel
	}
	if o.Stdin {
		in = streams[stdinChannel]
	}

	if _, err := streams[first].Write(nil); err != nil {
		return
	}
	var sizes chan remotecommand.TerminalSize
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()

	if o.TTY {
		sizes = make(chan remotecommand.TerminalSize)
		resizes.Go(func() { readSizes(ctx, streams[resizeChannel], sizes) })
	}

	status, err := json.Marshal(statusOf(run(ctx, in, out, errw, sizes)))
	if err == nil {
		_, _ = streams[statusChannel].Write(status) // the client may have disconnected
	}
}

func channels(o *remotecommand.Options) []wsstream.ChannelType {
	list := []wsstream.ChannelType{
		stdinChannel: wsstream.IgnoreChannel, stdoutChannel: wsstream.IgnoreChannel, stderrChannel: wsstream.IgnoreChannel,
		statusChannel: wsstream.WriteChannel, resizeChannel: wsstream.ReadChannel,
	}

	if o.Stdin {
		list[stdinChannel] = wsstream.ReadChannel
	}
	if o.Stdout {
		list[stdoutChannel] = wsstream.WriteChannel
	}
	if o.Stderr {
		list[stderrChannel] = wsstream.WriteChannel
	}

	return list
}

// readSizes forwards the sizes of the client's terminal until the session ends.
func readSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for decoder := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// statusOf is the message that reports the end of a session to its client.
func statusOf(err error) metav1.Status {
	if err == nil {
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		return metav1.Status{
			Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason, Message: "command terminated with non-zero exit code: " + exit.Error(),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.Code)}}},
		}
	}
	return metav1.Status{
		Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError,
		Message: fmt.Sprintf("Internal error occurred: %v", err),
	}
}
