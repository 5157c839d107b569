package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// Board is a Grafana dashboard, as far as it is ours.
type Board struct {
	Title  string
	Panels []Panel
}

// Panel is a part of the board: a row is a heading and has no targets.
type Panel struct {
	Title, Type string
	// GridPos is in the board's 24 columns, and lines.
	GridPos     struct{ X, Y, W, H int }
	Targets     []Target
	FieldConfig struct {
		Defaults struct {
			Unit   string
			Custom struct {
				Stacking struct{ Mode string }
			}
		}
	}
}

// Row reports whether the panel is a heading.
func (p Panel) Row() bool { return p.Type == "row" }

// Stacked reports whether a series is drawn on top of the one before.
func (p Panel) Stacked() bool { return p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal" }

// Unit is Grafana's name of the values' unit.
func (p Panel) Unit() string { return p.FieldConfig.Defaults.Unit }

// Target is a query of a panel.
type Target struct{ Expr, LegendFormat string }

// ReadBoard reads the file that Grafana imports. A panel without a query is an error.
func ReadBoard(file string) (Board, error) {
	var b Board
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if err != nil {
		return Board{}, fmt.Errorf("read board: %w", err)
	}

	for _, p := range b.Panels {
		if !p.Row() && len(p.Targets) == 0 {
			return Board{}, fmt.Errorf("read board %s: panel %q has no query", file, p.Title)
		}
	}
	return b, nil
}

// Query is the expression with what Grafana puts in for variables if all nodes are
// selected: the window of rates is four scrapes.
func (t Target) Query(interval time.Duration) string {
	window := fmt.Sprintf("%ds", int(4*interval/time.Second))
	return strings.NewReplacer("$instance", ".*", "$__rate_interval", window).Replace(t.Expr)
}

// label is a place in a legend's format.
var label = regexp.MustCompile(`{{\s*(\w+)\s*}}`)

// Legend is the name of a series. A label that it does not have is an error.
func (t Target) Legend(metric model.Metric) (string, error) {
	var missing error
	text := label.ReplaceAllStringFunc(t.LegendFormat, func(place string) string {
		name := model.LabelName(label.FindStringSubmatch(place)[1])
		if metric[name] == "" {
			missing = fmt.Errorf("%s has no label %s, but %v", t.Expr, name, metric)
		}
		return string(metric[name])
	})
	return text, missing
}
