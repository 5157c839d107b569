package e2e

import (
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/prometheus"
	"crisp/test/testkit/prometheus/prometheustest"
)

// monitoring is the directory of what is tested here.
const monitoring = "../../hack/monitoring"

// TestAlertRules has promtool test the rules, each of which must have a case in which
// it fires, and one in which it does not.
func TestAlertRules(t *testing.T) {
	promtool := prometheustest.Program(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "crisp.rules.yml"}, {"test", "rules", "crisp.rules.test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}

	var cases struct {
		Tests []struct {
			Rules []struct {
				Alert string `json:"alertname"`
				Want  []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		}
	}
	readYAML(t, "crisp.rules.test.yml", &cases)
	fires, rests := map[string]bool{}, map[string]bool{}
	for _, c := range cases.Tests {
		for _, r := range c.Rules {
			if len(r.Want) > 0 {
				fires[r.Alert] = true
			} else {
				rests[r.Alert] = true
			}
		}
	}
	for alert := range alertRules(t) {
		if !fires[alert] || !rests[alert] {
			t.Errorf("%s is not tested: it fires %t, it does not %t", alert, fires[alert], rests[alert])
		}
	}
}

// alertRules are the expressions of the alerts.
func alertRules(t *testing.T) map[string]string {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	readYAML(t, "crisp.rules.yml", &file)
	rules := map[string]string{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			rules[r.Alert] = r.Expr
		}
	}
	if len(rules) < 5 {
		t.Fatalf("there are only %d rules", len(rules))
	}
	return rules
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(monitoring, name))
	if err == nil {
		err = yaml.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestMonitoring has Prometheus scrape a daemon that does everything that is measured,
// and evaluates each query of the board and of the rules.
func TestMonitoring(t *testing.T) {
	promtool := prometheustest.Program(t, "promtool")
	cni := newPlugin(t)
	n := newNode(t, lab.Options{Config: "metrics_address = \"127.0.0.1:0\"\n", PluginDir: cni.dir})
	address := regexp.MustCompile(`msg="Serving metrics" address=(\S+)`).FindStringSubmatch(n.Log())
	if address == nil {
		t.Fatalf("the log has no address:\n%s", n.Log())
	}
	work(t, n, cni) // counters that are there before the first scrape have a rate
	server := prometheustest.Serve(t, prometheus.Options{Target: address[1]})
	eventually(t, "a first scrape", func() bool { return len(prometheustest.Query(t, server, `crisp_build_info`)) == 1 })

	began := time.Now()
	for time.Since(began) < 8*time.Second {
		work(t, n, cni)
	}
	families := scrape(t, address[1])
	checkMetrics(t, promtool, address[1])
	board, err := prometheus.ReadBoard(filepath.Join(monitoring, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(board.Panels) < 10 {
		t.Fatalf("the board has only %d panels", len(board.Panels))
	}
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			q.Expr = q.Query(5 * time.Second)
			checkQuery(t, server, p.Title, q)
			checkNames(t, q.Expr, families)
		}
	}
	for alert, expr := range alertRules(t) {
		prometheustest.Query(t, server, expr)
		checkNames(t, expr, families)
		if !strings.Contains(expr, `job="crisp"`) {
			t.Errorf("%s is about any job: %s", alert, expr)
		}
	}
}

// work does what is measured, once well and once badly.
func work(t *testing.T, n *node, cni plugin) {
	t.Helper()
	p := n.pod(t)
	p.start(t)
	p.start(t, sh("exit 3"), named("failing")).wait(t)
	if _, err := try(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.k8s.io/none:1"}}); err == nil {
		t.Error("an image that does not exist was pulled")
	}
	n.pull(t, busybox)

	cni.set(t, "fail-ADD")
	cfg := n.podConfig(t)
	cfg.Metadata.Name = "refused"
	if r, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg}); err == nil {
		t.Errorf("pod %s runs without a network", r.PodSandboxId)
	}
	cni.clear("fail-ADD")
	p.remove(t)
}

// checkMetrics has promtool lint what a daemon exports.
func checkMetrics(t *testing.T, promtool, address string) {
	t.Helper()
	r, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = r.Body
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// checkQuery requires that a query returns series with a value, and with the labels
// that its legend prints.
func checkQuery(t *testing.T, server *prometheus.Server, title string, q prometheus.Target) {
	t.Helper()
	series := prometheustest.Query(t, server, q.Expr)
	if len(series) == 0 {
		t.Errorf("panel %q is empty: %s", title, q.Expr)
	}
	for _, s := range series {
		if _, err := q.Legend(s.Metric); err != nil {
			t.Errorf("panel %q: %v", title, err)
		}
	}
	finite := func(s *model.Sample) bool { return !math.IsNaN(float64(s.Value)) && !math.IsInf(float64(s.Value), 0) }
	if !slices.ContainsFunc(series, finite) {
		t.Errorf("panel %q has no number: %s: %v", title, q.Expr, series)
	}
}

// checkNames requires that a daemon exports all metrics that an expression names.
func checkNames(t *testing.T, expr string, samples map[string]float64) {
	t.Helper()
	for _, name := range regexp.MustCompile(`\b(?:crisp|grpc|process|go)_[a-z_]+\b`).FindAllString(expr, -1) {
		if strings.HasPrefix(name, "grpc_method") || strings.HasPrefix(name, "grpc_code") {
			continue // labels
		}
		found := false
		for sample := range samples {
			found = found || sample == name || strings.HasPrefix(sample, name+"{")
		}
		if !found {
			t.Errorf("%s is not exported, which %s needs", name, expr)
		}
	}
}
