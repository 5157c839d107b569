package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Source is the daemon's state. Its methods answer from memory.
type Source interface {
	// Pods and Containers return the numbers by state: "ready" and "notready", and
	// "created", "running", "exited" and "unknown".
	Pods() map[string]int
	Containers() map[string]int
	// Images returns the number of images and the size of their layers, in bytes.
	Images() (count int, bytes uint64)
}

// state reads a source when Prometheus asks.
type state struct{ source Source }

type stateDescs struct{ pods, containers, images, imageBytes *prometheus.Desc }

func descs() stateDescs {
	return stateDescs{
		pods:       prometheus.NewDesc("crisp_pods", "Pod sandboxes.", []string{"state"}, nil),
		containers: prometheus.NewDesc("crisp_containers", "Containers.", []string{"state"}, nil),
		images:     prometheus.NewDesc("crisp_images", "Images that are present.", nil, nil),
		imageBytes: prometheus.NewDesc("crisp_image_size_bytes", "Sum of the sizes of all images; layers that several share count for each.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (state) Describe(out chan<- *prometheus.Desc) {
	d := descs()
	for _, one := range []*prometheus.Desc{d.pods, d.containers, d.images, d.imageBytes} {
		out <- one
	}
}

// Collect implements prometheus.Collector.
func (s state) Collect(out chan<- prometheus.Metric) {
	d := descs()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	for name, n := range s.source.Pods() {
		gauge(d.pods, float64(n), name)
	}
	for name, n := range s.source.Containers() {
		gauge(d.containers, float64(n), name)
	}

	count, bytes := s.source.Images()
	gauge(d.images, float64(count))
	gauge(d.imageBytes, float64(bytes))
}
