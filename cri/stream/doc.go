// Package stream serves the interactive calls of the CRI: exec, attach and
// port-forward. The CRI responds to such a call with a URL, to which the
// caller, kubelet or crictl, then connects for the data, by SPDY or WebSocket.
// The protocols are k8s.io/cri-streaming's, except version 5 of the one over
// WebSocket, and SPDY in a WebSocket, which that lacks; this package adds the
// rest: the listener, the one-time URLs, the connections, and the end of all
// these. A client gets the last bytes of its session however slow it is: a
// closed connection is kept as long as the client reads from it.
//
// The context of each [Runtime] call ends when its client disconnects or the
// server stops.
package stream
