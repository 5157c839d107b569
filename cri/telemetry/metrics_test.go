package telemetry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

// nothing is a source with fixed numbers.
type nothing struct{}

func (nothing) Pods() map[string]int       { return map[string]int{"ready": 3, "notready": 0} }
func (nothing) Containers() map[string]int { return map[string]int{"running": 4} }
func (nothing) Images() (int, uint64)      { return 2, 1 << 20 }

// used returns metrics with a sample of everything.
func used() *Metrics {
	m := New("1.2.3", nothing{})
	m.Step("sandbox", "make cgroup", false, 3*time.Millisecond, nil)
	m.Step("sandbox", "make cgroup", true, time.Millisecond, errors.New("no"))
	m.Plugin("bridge", "ADD", 20*time.Millisecond, nil)
	m.Plugin("\xff", "DEL", time.Millisecond, errors.New("no"))
	m.Exited("OOMKilled")
	m.Pulled(time.Second, nil)
	m.Pulled(time.Second, errors.New("no"))
	m.Downloaded(1000)
	m.Downloaded(24)
	m.AuditLost(2)
	return m
}

func gather(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		all[f.GetName()] = f
	}
	return all
}

// TestMetrics expects what is measured in the numbers.
func TestMetrics(t *testing.T) {
	all := gather(t, used())
	sum := func(name string, labels ...string) (total float64) {
		for _, m := range all[name].GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			if slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(have, l) }) {
				continue
			}
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		return total
	}

	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"crisp_step_duration_seconds", []string{"table=sandbox", "step=make cgroup", "undo=false"}, 1},
		{"crisp_step_errors_total", []string{"undo=true"}, 1},
		{"crisp_step_errors_total", nil, 1},
		{"crisp_cni_duration_seconds", []string{"plugin=bridge", "verb=ADD"}, 1},
		{"crisp_cni_errors_total", []string{"plugin=?"}, 1},
		{"crisp_container_exits_total", []string{"reason=OOMKilled"}, 1},
		{"crisp_image_pull_duration_seconds", []string{"result=success"}, 1},
		{"crisp_image_pull_duration_seconds", []string{"result=error"}, 1},
		{"crisp_image_downloaded_bytes_total", nil, 1024},
		{"crisp_audit_lines_lost_total", nil, 2},
		{"crisp_pods", []string{"state=ready"}, 3},
		{"crisp_containers", []string{"state=running"}, 4},
		{"crisp_images", nil, 2},
		{"crisp_image_size_bytes", nil, 1 << 20},
		{"crisp_build_info", []string{"version=1.2.3"}, 1},
	} {
		if got := sum(c.name, c.labels...); got != c.want {
			t.Errorf("%s%q = %v, want %v", c.name, c.labels, got, c.want)
		}
	}
}

// TestNames lints the names as Prometheus' own tool does, and compares them with the
// documentation.
func TestNames(t *testing.T) {
	m := used()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}

	data, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "| `crisp_"); ok {
			documented = append(documented, "crisp_"+name[:strings.IndexByte(name, '`')])
		}
	}
	var own []string
	for name := range gather(t, m) {
		if strings.HasPrefix(name, "crisp_") {
			own = append(own, name)
		}
	}
	slices.Sort(documented)
	slices.Sort(own)
	if !slices.Equal(documented, own) {
		t.Errorf("docs/operate.md has %q, the daemon %q", documented, own)
	}
}

// TestServe scrapes over HTTP until the context ends.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	at, done, err := used().Serve(ctx, "127.0.0.1:0", func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}

	r, err := http.Get("http://" + at.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(text), `crisp_pods{state="ready"} 3`) {
		t.Errorf("status %d, %v:\n%s", r.StatusCode, err, text)
	}
	if r, err = http.Get("http://" + at.String() + "/other"); err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusNotFound {
		t.Errorf("another path: status %d", r.StatusCode)
	}

	if _, _, err := used().Serve(ctx, at.String(), nil); err == nil {
		t.Error("an address in use is served twice")
	}
	cancel()
	<-done
	if _, err := http.Get("http://" + at.String() + "/metrics"); err == nil {
		t.Error("it is served after the end")
	}
}
