package cri

import (
	"context"
	"fmt"
	"math"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/audit"
	"crisp/cri/pod"
	"crisp/cri/pod/stdio"
)

// maxExecOutput bounds the output that ExecSync returns, in bytes: kubelet's
// client accepts messages of 16 MiB, and a message has a few bytes of its own.
const maxExecOutput = 16<<20 - 64

// capped keeps the first limit bytes written to it and drops the rest, so that
// a command cannot exhaust the daemon's memory (CVE-2022-31030).
type capped struct {
	buf   []byte
	limit int
}

func (c *capped) Write(p []byte) (int, error) {
	kept := p[:min(len(p), c.limit-len(c.buf))]
	if need := len(c.buf) + len(kept); need > cap(c.buf) {
		c.buf = append(make([]byte, 0, c.room(need)), c.buf...)
	}
	c.buf = append(c.buf, kept...)
	return len(p), nil
}

// room returns the capacity for need bytes. It grows in few steps instead of
// doubling, which would leave as much garbage as there is output.
func (c *capped) room(need int) int {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		if need <= size {
			return min(size, c.limit)
		}
	}
	return c.limit
}

// seconds converts a timeout of a request. A value beyond the range of
// [time.Duration] is clamped, not wrapped around.
func seconds(n int64) time.Duration {
	const limit = math.MaxInt64 / int64(time.Second)
	return time.Duration(min(max(n, -limit), limit)) * time.Second
}

// ExecSync runs a command and returns its output. A timeout of zero means none.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if r.GetTimeout() > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, seconds(r.GetTimeout()))
		defer cancel()
	}
	end := func(int, error) {}
	if s.Audit.On() {
		line := audit.Record{Call: audit.ExecSync, Caller: audit.CallerOf(ctx), ContainerID: r.GetContainerId()}
		identify(s.Pods, &line)
		end = s.Audit.Begin(line, r.GetCmd())
	}

	stdout, stderr := capped{limit: maxExecOutput}, capped{limit: maxExecOutput}
	code, err := s.Pods.Exec(ctx, r.GetContainerId(), r.GetCmd(), stdio.Streams{Stdout: &stdout, Stderr: &stderr})
	end(code, err)
	if err != nil {
		return nil, err
	}
	out, errs := share(stdout.buf, stderr.buf, maxExecOutput)
	return &runtimeapi.ExecSyncResponse{Stdout: out, Stderr: errs, ExitCode: int32(code)}, nil
}

// share cuts two outputs to limit bytes together. Neither is cut below half of
// that for the sake of the other.
func share(a, b []byte, limit int) (_, _ []byte) {
	if len(a) > limit/2 {
		a = a[:min(len(a), limit-min(len(b), limit/2))]
	}
	return a, b[:min(len(b), limit-len(a))]
}

// Exec returns the URL of a session that runs a command.
func (s *Server) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("exec in container %s: %w: no command", r.GetContainerId(), pod.ErrInvalid)
	}
	c, err := s.running(r.GetContainerId(), "exec in")
	if err != nil {
		return nil, err
	}
	r.ContainerId = c.ID
	return s.Streams.GetExec(audit.CallerOf(ctx), r)
}

// Attach returns the URL of a session with the container's streams.
func (s *Server) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := s.running(r.GetContainerId(), "attach to")
	if err != nil {
		return nil, err
	}
	r.ContainerId = c.ID
	return s.Streams.GetAttach(audit.CallerOf(ctx), r)
}
