// Package nri lets plugins of the Node Resource Interface take part in the life
// of pods and containers.
//
// A plugin connects to a socket, or is started from a directory. It is told of
// every pod and container that exists, and then of what happens to them; it may
// adjust a container before that is made, refuse a sandbox, a container, or the
// start of one, and change the limits of any container at any time. The protocol,
// the order of plugins and the judgement of conflicts between them are those of
// github.com/containerd/nri; this package translates.
//
//	kubelet ──▶ cri/pod ── Plugins ──▶ Host ── adaptation ── ttrpc ──▶ plugins
//	               ▲                    │
//	               └── Runtime ◀────────┘  updates that a plugin asks for
//
// What plugins may do to a container is decided here: what crisp cannot do, or
// what is kubelet's to decide, such as the cgroup, is refused with the name of the
// setting, never ignored.
//
// A plugin that does not answer in time is disconnected, unless it asked for
// something else. A container that needs a plugin which is not connected waits for
// it for a while and is then refused: no container passes a required plugin by.
package nri
