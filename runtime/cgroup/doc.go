// Package cgroup creates the control groups that containers run in, limits
// them, reads their statistics, kills their processes and removes them.
//
// A [Node] is the machine's cgroup setup: version 1 or 2, managed through
// cgroupfs or systemd. It names groups ([Node.Path]) and creates or opens them
// as a [Group].
//
// # Entering a group
//
// No other process moves a process into its group: in the unified hierarchy it
// is cloned into it (CLONE_INTO_CGROUP on the descriptor of [Group.Entry]), and
// it joins version 1 hierarchies by writing "0" to the tasks file of each,
// which avoids the lock that the kernel takes for another process's PID.
// systemd needs a PID to start a scope, so there the process waits at a gate
// ([Group.NeedsGate]) until [Group.Attach] has put it into its scope.
//
// # Every hierarchy
//
// A group is created, and joined, in every hierarchy that the kernel has in
// use: also in those whose controllers CRI can neither set nor report (net_cls,
// perf_event, rdma, misc), named ones without controllers (name=systemd), the
// unified one alongside version 1, version 1 ones alongside it, and those that
// are mounted elsewhere or nowhere. In a container's cgroup namespace the root
// of a hierarchy is the group that its init was in, and a process with
// CAP_SYS_ADMIN can mount any hierarchy. Where that group is the node's root,
// the container sees all processes, and can set release_agent, a program that
// the kernel runs as root on the node (CVE-2022-0492). That file exists in the
// root group only, and the mount option of the same name is refused while the
// hierarchy has any child group, so a group of the container's own is
// sufficient.
//
// Hierarchies created while a node is in use are joined by groups created
// afterwards, and are kept for as long as the node is in use.
//
// # Killing
//
// The processes of a group may be hostile: many that fork, frozen or throttled,
// in any number of child groups. See [Group.Kill]; walks of a tree of groups
// use no recursion and only a few descriptors, and can be cancelled.
//
// What has ended and is not reaped is dead, though from Linux 6.19 on it may keep a
// group from being removed: [Group.Remove] does not wait for it ([ErrDefunct]).
//
// # The library
//
// Limits are written by github.com/opencontainers/cgroups, which kubelet uses
// too, so that both interpret them alike. It is bypassed in five places:
//
//   - Creating a version 1 group: the library walks every hierarchy from its
//     root and writes device rules with one open(2) each, 1.6 ms for a container
//     where the necessary system calls take 0.6 ms.
//   - Statistics: the library reads NUMA, kernel TCP and cpuset files that
//     are not needed, 1.1 ms where the files of [Stats] take 0.2 ms.
//   - Creating a version 2 group: the library writes the subtree_control of every
//     ancestor each time; here only a parent that lacks a controller is written.
//   - The device filter of a version 2 group: the library loads a program for
//     each, 0.3 ms, though nearly all are identical; they are shared here.
//   - Killing and removing, which must end when a context does.
//
// Its version 1 manager is not used at all: managers share one list of
// controllers and write to it, which is a race between containers. The
// controllers are called one by one instead.
package cgroup
