// Package stream serves the interactive calls of the CRI: exec, attach and
// port-forward.
//
// The CRI answers such a call with a URL, where the caller, which is kubelet
// or crictl, then connects for the data, by SPDY or WebSocket. The protocols
// are k8s.io/cri-streaming's; this package owns what surrounds them: the
// listener, the one-time URLs, the connections, and the end of all these.
//
// The context of each [Runtime] call ends when its client disconnects or the
// server stops.
package stream
