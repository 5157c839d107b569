// Package telemetry measures the daemon for Prometheus.
//
// [Metrics] is a meter for the packages that do the work, which know nothing of
// Prometheus: each has an interface or a function type for what it reports, and
// reports nothing if it has none. What is a state rather than an event, such as the
// number of pods, is read when Prometheus asks.
//
// Labels have few values, all of them crisp's own: no name of a pod, container or
// image, so that what pods do never decides how many series there are. Names and units
// follow Prometheus' rules; [Names] is the list that docs/operate.md shows.
package telemetry
