// Package prometheus runs Prometheus for tests and pictures of a daemon's metrics, and
// reads the board whose panels these show.
package prometheus

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// startTime is how long it may take until a server answers.
const startTime = 30 * time.Second

// Options are those of a server.
type Options struct {
	// Program is Prometheus', and Dir an existing directory for its files.
	Program, Dir string
	// Target is the address of the daemon's metrics, and Instance the value of the
	// label instance; the address if it is empty.
	Target, Instance string
	// Jobs are scrape configurations in addition to that of the daemon, in YAML.
	Jobs []string
	// Interval is the time between two scrapes, in whole seconds.
	Interval time.Duration
}

// Server is a running Prometheus.
type Server struct {
	api     v1.API
	process *lab.Process
}

// Start runs a server and waits until it answers. [Server.Stop] ends it.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Instance == "" {
		o.Instance = o.Target
	}
	jobs := append([]string{fmt.Sprintf("{job_name: crisp, static_configs: [{targets: [%q], labels: {instance: %q}}]}", o.Target, o.Instance)}, o.Jobs...)
	config := fmt.Sprintf("global: {scrape_interval: %v}\nscrape_configs: [%s]\n", o.Interval, strings.Join(jobs, ", "))
	file := filepath.Join(o.Dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}

	// It takes no listener, so another program may get the port meanwhile.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	at := l.Addr().String()
	l.Close()

	client, err := api.NewClient(api.Config{Address: "http://" + at})
	if err != nil {
		return nil, err
	}
	s := &Server{api: v1.NewAPI(client)}
	s.process, err = lab.StartProcess(filepath.Join(o.Dir, "log"), nil, o.Program,
		"--config.file="+file, "--storage.tsdb.path="+filepath.Join(o.Dir, "data"), "--web.listen-address="+at)
	if err != nil {
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}

	if err := s.process.WaitUntil(ctx, pace.Scale(startTime), func() bool { return ready(ctx, at) }); err != nil {
		_ = s.Stop() // it may have exited
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}
	return s, nil
}

func ready(ctx context.Context, at string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/-/ready", nil)
	if err != nil {
		return false
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// Stop ends the server.
func (s *Server) Stop() error { return s.process.Stop() }

// Query evaluates an expression, whose value is a vector, now.
func (s *Server) Query(ctx context.Context, expr string) (model.Vector, error) {
	v, _, _, err := s.api.Query(ctx, expr, time.Now()) // warnings are of what is merely slow
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	vector, ok := v.(model.Vector)
	if !ok {
		return nil, fmt.Errorf("query %s: the value is a %v, not a vector", expr, v.Type())
	}
	return vector, nil
}

// Range evaluates an expression at each step of a time.
func (s *Server) Range(ctx context.Context, expr string, r v1.Range) (model.Matrix, error) {
	v, _, _, err := s.api.QueryRange(ctx, expr, r) // warnings are of what is merely slow
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	matrix, ok := v.(model.Matrix)
	if !ok {
		return nil, fmt.Errorf("query %s: the value is a %v, not a matrix", expr, v.Type())
	}
	return matrix, nil
}
