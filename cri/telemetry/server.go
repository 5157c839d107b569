package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// readTime bounds a request's header, writeTime its answer.
	readTime, writeTime = 10 * time.Second, 30 * time.Second
	// maxScrapes is how many answers are made at a time: each gathers everything.
	maxScrapes = 2
)

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: writeTime, EnableOpenMetrics: true})
}

// Serve answers scrapes of /metrics at a TCP address until ctx ends, from a goroutine
// whose end done reports. The address is returned, with the port that was chosen if
// that is 0.
func (m *Metrics) Serve(ctx context.Context, address string, report func(error)) (at net.Addr, done <-chan struct{}, err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("serve metrics: %w", err)
	}

	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: writeTime + readTime, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer stop()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			report(fmt.Errorf("serve metrics on %s: %w", l.Addr(), err))
		}
	}()
	return l.Addr(), ended, nil
}
