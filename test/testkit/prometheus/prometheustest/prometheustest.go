// Package prometheustest gives tests a Prometheus.
package prometheustest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/common/model"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/prometheus"
)

// Program is the path of one of Prometheus' programs. Without it the test is skipped.
func Program(t *testing.T, name string) string {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	path, err := cache.Tool(name)
	if err != nil {
		testkit.Skip(t, "prometheus", "make monitoring fetches it from Debian: "+err.Error())
	}
	return path
}

// Serve runs a server that scrapes each second, until the test ends. It sets the
// program, the directory and the interval of the options.
func Serve(t *testing.T, o prometheus.Options) *prometheus.Server {
	t.Helper()
	o.Program, o.Dir, o.Interval = Program(t, "prometheus"), t.TempDir(), time.Second
	server, err := prometheus.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		if log, err := os.ReadFile(filepath.Join(o.Dir, "log")); t.Failed() && err == nil {
			t.Logf("Prometheus:\n%s", log)
		}
	})
	return server
}

// Query evaluates an expression now.
func Query(t *testing.T, server *prometheus.Server, expr string) model.Vector {
	t.Helper()
	v, err := server.Query(t.Context(), expr)
	if err != nil {
		t.Error(err)
	}
	return v
}
