package prometheus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
)

func TestTarget(t *testing.T) {
	q := Target{Expr: `rate(x{instance=~"$instance"}[$__rate_interval])`, LegendFormat: "{{table}}: {{ step }} (undo)"}
	if got, want := q.Query(2*time.Second), `rate(x{instance=~".*"}[8s])`; got != want {
		t.Errorf("query %s, want %s", got, want)
	}

	got, err := q.Legend(model.Metric{"table": "sandbox", "step": "network $1"})
	if want := "sandbox: network $1 (undo)"; err != nil || got != want {
		t.Errorf("legend %q, %v, want %q", got, err, want)
	}
	if _, err := q.Legend(model.Metric{"table": "sandbox"}); err == nil || !strings.Contains(err.Error(), "no label step") {
		t.Errorf("legend without a label: %v", err)
	}
}

func TestReadBoard(t *testing.T) {
	read := func(text string) (Board, error) {
		file := filepath.Join(t.TempDir(), "board.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadBoard(file)
	}

	b, err := read(`{"title": "b", "panels": [{"type": "row", "title": "r"}, {"type": "timeseries", "title": "p", "gridPos": {"x": 12, "w": 6},
		"fieldConfig": {"defaults": {"unit": "s", "custom": {"stacking": {"mode": "normal"}}}}, "targets": [{"expr": "up"}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if p := b.Panels[1]; !b.Panels[0].Row() || p.Row() || !p.Stacked() || p.Unit() != "s" || p.GridPos.X != 12 || p.Targets[0].Expr != "up" {
		t.Errorf("read %+v", b)
	}

	for text, want := range map[string]string{
		`{"panels": [{"type": "timeseries", "title": "empty"}]}`: `panel "empty" has no query`,
		`[]`: "read board",
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
