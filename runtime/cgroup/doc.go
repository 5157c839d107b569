// Package cgroup makes the control groups that containers run in, limits
// them, reads their accounts, ends what runs in them and takes them away.
//
// A [Node] is the machine's way with cgroups: version 1 or 2, driven by
// writing to cgroupfs or by asking systemd. It names groups ([Node.Path]) and
// makes or opens them as a [Group].
//
// # Entering a group
//
// A process is not moved into its group by somebody else: it is born there
// (version 2, CLONE_INTO_CGROUP on the descriptor of [Group.Entry]) or joins
// by writing "0" to each hierarchy's tasks file (version 1), which spares the
// kernel the lock that a write of another's pid takes. systemd wants a pid to
// start a scope, so there the process waits at a gate ([Group.NeedsGate])
// until [Group.Attach] has put it into its scope.
//
// # The library
//
// Limits are written by github.com/opencontainers/cgroups, which kubelet uses
// too, so that both mean the same by them. It is passed over in five places:
//
//   - Making a version 1 group: the library walks every hierarchy from its
//     root and writes device rules one open file each, 1.6 ms for a container
//     where the system calls that must be take 0.6 ms.
//   - Statistics: the library reads NUMA, kernel TCP and cpuset files that
//     nobody asks for, 1.1 ms where the files of [Stats] take 0.2 ms.
//   - Making a version 2 group: the library writes the subtree_control of every
//     ancestor each time; here only a parent that lacks a controller is written.
//   - The device filter of a version 2 group: the library loads a program for
//     each, 0.3 ms, though nearly all are the same; they are shared here.
//   - Killing and removing, which must end when a context does.
//
// Its version 1 manager is not used at all: managers share one list of
// controllers and write to it, which is a race between containers. The
// controllers are called one by one instead.
package cgroup
