// Package ctl has the commands that ask a running daemon: what runs, why it does
// not, and what to change. They call the CRI as kubelet does and, for what it does
// not carry, the daemon's admin socket.
//
// Pods and containers have names, see package [crisp/cri/client]. Output is a table,
// or JSON, YAML or a Go template of the same objects, for programs; it has colors
// and moves only on a terminal. Exit codes are stable, see [Code].
package ctl
