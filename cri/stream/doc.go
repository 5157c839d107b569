// Package stream serves the interactive calls of the CRI: exec, attach and
// port-forward.
//
// The CRI answers such a call with a URL, where the caller, which is kubelet
// or crictl, then connects for the data, by SPDY or WebSocket. The protocols
// are k8s.io/cri-streaming's, but for version 5 of the one over WebSocket, and
// SPDY in a WebSocket, which that does not have; this package owns what surrounds them: the listener, the
// one-time URLs, the connections, and the end of all these.
//
// A session's last bytes are its client's, however slow that is: a closed
// connection is kept as long as something is taken from it.
//
// The context of each [Runtime] call ends when its client disconnects or the
// server stops.
package stream
