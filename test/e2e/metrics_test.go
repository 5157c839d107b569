package e2e

import (
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestMetrics compares what the daemon measures with what was done.
func TestMetrics(t *testing.T) {
	n := newNode(t, lab.Options{Config: "metrics_address = \"127.0.0.1:0\"\n"})
	address := regexp.MustCompile(`msg="Serving metrics" address=(\S+)`).FindStringSubmatch(n.Log())
	if address == nil {
		t.Fatalf("the log has no address:\n%s", n.Log())
	}

	before := scrape(t, address[1])
	p := n.pod(t)
	p.start(t)
	if _, err := try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: "none"}); err == nil {
		t.Error("a container that does not exist was started")
	}
	p.start(t, sh("exit 3"), func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "failing" }).wait(t)
	during := scrape(t, address[1])

	for name, want := range map[string]float64{
		`crisp_step_duration_seconds_count{step="attach network",table="sandbox",undo="false"}`:                                                   1,
		`crisp_step_duration_seconds_count{step="make spec",table="container",undo="false"}`:                                                      2,
		`crisp_step_duration_seconds_count{step="run plan",table="start",undo="false"}`:                                                           2,
		`crisp_cni_duration_seconds_count{plugin="bridge",verb="ADD"}`:                                                                            1,
		`crisp_container_exits_total{reason="Error"}`:                                                                                             1,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="StartContainer",grpc_service="runtime.v1.RuntimeService",grpc_type="unary"}`:       2,
		`grpc_server_handled_total{grpc_code="NotFound",grpc_method="StartContainer",grpc_service="runtime.v1.RuntimeService",grpc_type="unary"}`: 1,
		`grpc_server_handling_seconds_count{grpc_method="RunPodSandbox",grpc_service="runtime.v1.RuntimeService",grpc_type="unary"}`:              1,
		`crisp_pods{state="ready"}`:         1,
		`crisp_containers{state="running"}`: 1,
		`crisp_containers{state="exited"}`:  1,
	} {
		if got := during[name] - before[name]; got != want {
			t.Errorf("%s grew by %v, want %v", name, got, want)
		}
	}
	if during["crisp_images"] != 1 || during["crisp_image_downloaded_bytes_total"] < 100_000 {
		t.Errorf("%v images, %v bytes downloaded", during["crisp_images"], during["crisp_image_downloaded_bytes_total"])
	}
	for name := range during {
		if strings.Contains(name, p.id) || strings.Contains(name, p.cfg.Metadata.Name) {
			t.Errorf("%s names a pod", name)
		}
	}

	p.remove(t)
	after := scrape(t, address[1])
	if got := after[`crisp_step_duration_seconds_count{step="attach network",table="sandbox",undo="true"}`] - during[`crisp_step_duration_seconds_count{step="attach network",table="sandbox",undo="true"}`]; got != 1 {
		t.Errorf("%v networks were detached, want 1", got)
	}
}

// scrape returns all samples at an address, by name with labels.
func scrape(t *testing.T, address string) map[string]float64 {
	t.Helper()
	r, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v", r.StatusCode, err)
	}

	samples := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		value, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Errorf("sample %q: %v", line, err)
		}
		samples[line[:i]] = value
	}
	return samples
}
