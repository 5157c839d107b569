// Package cgroup makes the control groups that containers run in, limits
// them, reads their accounts, ends what runs in them and takes them away.
//
// A [Node] is the machine's way with cgroups: version 1 or 2, driven by
// writing to cgroupfs or by asking systemd. It names groups ([Node.Path]) and
// makes or opens them as a [Group].
//
// # Entering a group
//
// A process is not moved into its group by somebody else: in the unified
// hierarchy it is born there (CLONE_INTO_CGROUP on the descriptor of
// [Group.Entry]), and it joins version 1 hierarchies by writing "0" to the
// tasks file of each, which spares the kernel the lock that a write of
// another's pid takes. systemd wants a pid to start a scope, so there the
// process waits at a gate ([Group.NeedsGate]) until [Group.Attach] has put it
// into its scope.
//
// # Every hierarchy
//
// A group is made, and joined, in every hierarchy that the kernel has in use:
// also in those whose controllers have nothing that CRI can set or show
// (net_cls, perf_event, rdma, misc), those with a name and no controller
// (name=systemd), the unified one beside version 1, version 1 ones beside it,
// and those that are mounted elsewhere or nowhere. A container's cgroup namespace shows it as
// the root of a hierarchy the group that its first process was in, and whoever
// has CAP_SYS_ADMIN can mount any hierarchy. Where that group is the root, it is
// the node's: all processes are seen, and release_agent, a program that the
// kernel runs as root on the node, can be set (CVE-2022-0492). The file is in the
// root group only, and the mount option of the same name is refused as long as
// there is any group below, so that a group of one's own is all it takes.
//
// Hierarchies that somebody makes while a node is in use are joined by the
// groups that are made from then on, and stay for as long as the node is in use.
//
// # Ending
//
// What runs in a group may be hostile: many processes that fork, frozen or kept
// from the processor, in groups below their own without number. See
// [Group.Kill]; what goes through a tree of groups needs neither recursion nor
// more than a few descriptors, and can be cancelled.
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
