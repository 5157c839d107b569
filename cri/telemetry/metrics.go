package telemetry

import (
	"runtime"
	"strings"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
)

// Metrics are the daemon's metrics. It implements the meters of packages pod and
// image; [Metrics.Plugin] is that of package network.
type Metrics struct {
	registry *prometheus.Registry
	calls    *grpcprom.ServerMetrics

	steps, plugins *prometheus.HistogramVec
	stepErrors     *prometheus.CounterVec
	pluginErrors   *prometheus.CounterVec
	exits          *prometheus.CounterVec
	pulls          *prometheus.HistogramVec
	downloaded     prometheus.Counter
	auditLost      prometheus.Counter
}

// Results of what can fail.
const (
	succeeded = "success"
	failed    = "error"
)

// durations returns the options of a histogram of times in seconds. It has classic
// buckets from a fifth of a millisecond to a minute, and native ones for a Prometheus
// that asks for them.
func durations(name, help string) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: name, Help: help,
		Buckets:                        []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60},
		NativeHistogramBucketFactor:    1.1,
		NativeHistogramMaxBucketNumber: 100,
	}
}

// New returns the metrics of a daemon of a version, with the state that it reads from
// a source.
func New(version string, source Source) *Metrics {
	calls := durations("grpc_server_handling_seconds", "")
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(
			grpcprom.WithHistogramOpts(&calls), grpcprom.WithHistogramBuckets(calls.Buckets),
		)),
		steps: prometheus.NewHistogramVec(durations("crisp_step_duration_seconds",
			"Duration of a step of an operation on a sandbox or container, or of a part of a container's start; undo is true for the inverse of a step."),
			[]string{"table", "step", "undo"}),
		stepErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "crisp_step_errors_total", Help: "Steps that failed.",
		}, []string{"table", "step", "undo"}),
		plugins: prometheus.NewHistogramVec(durations("crisp_cni_duration_seconds", "Duration of a call of a network plugin."),
			[]string{"plugin", "verb"}),
		pluginErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "crisp_cni_errors_total", Help: "Calls of network plugins that failed.",
		}, []string{"plugin", "verb"}),
		exits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "crisp_container_exits_total", Help: "Exits of containers, by the reason that kubelet sees: Completed, Error, OOMKilled, Unknown, and so on.",
		}, []string{"reason"}),
		pulls: prometheus.NewHistogramVec(durations("crisp_image_pull_duration_seconds", "Duration of a pull, which several callers may share."),
			[]string{"result"}),
		downloaded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "crisp_image_downloaded_bytes_total", Help: "Bytes of layers received from registries.",
		}),
		auditLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "crisp_audit_lines_lost_total", Help: "Lines of the audit log that could not be written.",
		}),
	}

	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "crisp_build_info", Help: "Constant 1, with the version as a label.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(
		m.calls, m.steps, m.stepErrors, m.plugins, m.pluginErrors, m.exits, m.pulls, m.downloaded, m.auditLost, build, state{source},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Unary measures unary calls.
func (m *Metrics) Unary() grpc.UnaryServerInterceptor { return m.calls.UnaryServerInterceptor() }

// Stream measures streaming calls.
func (m *Metrics) Stream() grpc.StreamServerInterceptor { return m.calls.StreamServerInterceptor() }

// Step implements pod.Meter.
func (m *Metrics) Step(table, step string, undo bool, took time.Duration, err error) {
	direction := "false"
	if undo {
		direction = "true"
	}
	m.steps.WithLabelValues(table, step, direction).Observe(took.Seconds())
	if err != nil {
		m.stepErrors.WithLabelValues(table, step, direction).Inc()
	}
}

// Exited implements pod.Meter.
func (m *Metrics) Exited(reason string) { m.exits.WithLabelValues(reason).Inc() }

// Plugin measures a call of a network plugin.
func (m *Metrics) Plugin(plugin, verb string, took time.Duration, err error) {
	// Both are from configurations of the administrator's, and may be anything.
	plugin, verb = strings.ToValidUTF8(plugin, "?"), strings.ToValidUTF8(verb, "?")
	m.plugins.WithLabelValues(plugin, verb).Observe(took.Seconds())
	if err != nil {
		m.pluginErrors.WithLabelValues(plugin, verb).Inc()
	}
}

// Pulled implements image.Meter.
func (m *Metrics) Pulled(took time.Duration, err error) {
	result := succeeded
	if err != nil {
		result = failed
	}
	m.pulls.WithLabelValues(result).Observe(took.Seconds())
}

// AuditLost counts lines of the audit log that could not be written.
func (m *Metrics) AuditLost(lines int) { m.auditLost.Add(float64(lines)) }

// Downloaded implements image.Meter.
func (m *Metrics) Downloaded(bytes int) { m.downloaded.Add(float64(bytes)) }
