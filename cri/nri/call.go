package nri

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// caller sends the library's requests to plugins. It bounds the time that this takes,
// and splits those that tell a plugin of more than fits into a message, which the
// library does not do.
type caller struct {
	// time is what a plugin has for a request.
	time   time.Duration
	mu     sync.Mutex
	closed bool           // guarded by mu
	wg     sync.WaitGroup // of requests; none is added once closed
}

// options are those of the client that each plugin has in the library.
func (c *caller) options() []ttrpc.ClientOpts {
	return []ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(c.intercept)}
}

// close waits for the present requests, and ends later ones.
func (c *caller) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}

func (c *caller) intercept(ctx context.Context, q *ttrpc.Request, a *ttrpc.Response, info *ttrpc.UnaryClientInfo, send ttrpc.Invoker) error {
	if strings.HasSuffix(info.FullMethod, "/Synchronize") && len(q.GetPayload()) > maxPart {
		return c.synchronise(ctx, q, a, send)
	}
	return c.call(ctx, q, a, send)
}

// sendGrace is how long a request may take that is over, until it must be stuck.
const sendGrace = 200 * time.Millisecond

// call makes a request. The answer is waited for until the context ends, but a plugin
// that does not read, because it is stopped or frozen, lets the request itself wait
// for room in its socket for ever. To the library such a plugin is gone, whatever its
// failure policy: it closes the connection, and with it the request ends.
func (c *caller) call(ctx context.Context, q *ttrpc.Request, a *ttrpc.Response, send ttrpc.Invoker) error {
	answer := &ttrpc.Response{}
	sent := make(chan error, 1)
	if !c.start(func() { sent <- send(ctx, q, answer) }) {
		return ttrpc.ErrClosed
	}
	take := func(err error) error {
		if err == nil {
			a.Status, a.Payload = answer.Status, answer.Payload
		}
		return err
	}

	select {
	case err := <-sent:
		return take(err)
	case <-ctx.Done():
	}
	select {
	case err := <-sent:
		return take(err)
	case <-time.After(sendGrace):
		return fmt.Errorf("%w: the plugin reads no requests", ttrpc.ErrClosed)
	}
}

// start runs a function, and reports whether it may.
func (c *caller) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(f)
	}
	return !c.closed
}

// maxPart is how much of pods and containers a plugin is told in one message, which
// has room for maxMessage; one of them has at most maxKnown.
const maxPart = maxMessage / 2

// synchronise tells a plugin of pods and containers in several messages. The library
// would send parts with the same share of pods as of containers, and where a share
// has less than one, messages with nothing, until the time is over.
func (c *caller) synchronise(ctx context.Context, q *ttrpc.Request, a *ttrpc.Response, send ttrpc.Invoker) error {
	all := &api.SynchronizeRequest{}
	if err := proto.Unmarshal(q.GetPayload(), all); err != nil {
		return fmt.Errorf("split a synchronisation: %w", err)
	}

	for _, part := range parts(all) {
		if err := c.tell(ctx, q, part, a, send); err != nil {
			return err
		}
		if !part.GetMore() || a.GetStatus().GetCode() != 0 {
			return nil // the library reads the answer
		}

		answer := &api.SynchronizeResponse{}
		if err := proto.Unmarshal(a.GetPayload(), answer); err != nil {
			return fmt.Errorf("decode the answer to a part of a synchronisation: %w", err)
		}
		if !answer.GetMore() || len(answer.GetUpdate()) > 0 {
			return fmt.Errorf("%w: a plugin that takes no synchronisation in parts, of which this node needs several", ErrUnsupported)
		}
	}
	return nil
}

// tell sends one part, which has the time of a whole request.
func (c *caller) tell(ctx context.Context, q *ttrpc.Request, part *api.SynchronizeRequest, a *ttrpc.Response, send ttrpc.Invoker) error {
	payload, err := proto.Marshal(part)
	if err != nil {
		return fmt.Errorf("split a synchronisation: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.time)
	defer cancel()

	one := &ttrpc.Request{Service: q.GetService(), Method: q.GetMethod(), Metadata: q.GetMetadata(), TimeoutNano: c.time.Nanoseconds(), Payload: payload}
	return c.call(ctx, one, a, send)
}

// parts splits a synchronisation, pods first.
func parts(all *api.SynchronizeRequest) []*api.SynchronizeRequest {
	last := &api.SynchronizeRequest{}
	list, size := []*api.SynchronizeRequest{last}, 0
	room := func(m proto.Message) {
		if n := proto.Size(m); size+n > maxPart && size > 0 {
			last.More = true
			last, size = &api.SynchronizeRequest{}, n
			list = append(list, last)
		} else {
			size += n
		}
	}

	for _, p := range all.GetPods() {
		room(p)
		last.Pods = append(last.Pods, p)
	}
	for _, c := range all.GetContainers() {
		room(c)
		last.Containers = append(last.Containers, c)
	}
	return list
}
