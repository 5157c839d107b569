// Package criu drives CRIU, the program that saves the state of running
// processes in files.
//
// CRIU stops each process, has it write down its own memory, and reads the rest
// from /proc. What it is told here is what it cannot know: which of a
// container's mounts, files and namespaces are not the container's own and will
// be given to it again by whoever restores it. They are externals, under names
// that do not depend on the node:
//
//	mnt[/etc/hosts]     a mount of something of the node's, by its path
//	net[4026532320]     the pod's network namespace
//	file[3a:5]          the node's /dev/null, as standard input
//
// Everything else, such as private tmpfs file systems with their content, is
// part of the dump.
//
// # Images
//
// The images of a dump that is to be restored are hostile: CRIU reads them as root,
// in C, and gives processes whatever they say. So [Inspect] decodes all of them
// first, within bounds, and refuses each file, and each field, that it does not
// know: the CRIU of the node may know it. Then [Inventory.Check] compares them
// with what a fresh start of the container would give its processes, or let them
// get, as its spec has it: the one of the request, not of the checkpoint.
//
//	users, groups          the spec's, unless a program or capability may change them
//	capabilities           in the spec's bounding set; with no_new_privs its permitted one
//	no_new_privs           set if the spec sets it
//	securebits             with CAP_SETPCAP only; dumpable is the kernel's matter
//	seccomp                each thread has the filter of the spec, see SetFilter, and maybe more;
//	                       none has a listener, or allows speculation
//	AppArmor, SELinux      there is a label for the caller to replace; no profiles to load
//	limits, scheduling     not above the spec's without the capability, also oom_score_adj,
//	                       login user, nice, policy
//	processes              one tree, of PID 1, within the pids limit
//	memory                 pages, tmpfs and files without names fit the memory limit; each
//	                       file of pages has one map, of its size, and no earlier dump
//	namespaces             own where the spec's are, and the same for all processes; the
//	                       network is given; a user namespace maps the spec's users
//	mounts                 all of the spec's, with its read-only, nosuid, nodev and noexec,
//	                       and others only below those that bring them; what is masked or
//	                       read-only still is; file systems of the container alone are of
//	                       known types and options; nothing is shared with the node
//	devices                in a tmpfs, or open by path: the spec's
//	files                  below a mount of the container, or given by the caller
//	sockets                raw ones, low ports, marks, foreign protocols with the capability
//	                       only; none is connected to a socket outside
//	terminals              pseudo-terminals
//	cgroups                no settings: the caller starts CRIU in the container's cgroup, so
//	                       that its limits and device rules apply, and has it ignore them
//	namespaces that are open, BPF maps, plugins, devices of the network, probes: refused,
//	                       or the container's own
//
// CRIU opens files without asking whether the process might. In the container's own
// files that gives it nothing that a hostile image would not. In a volume it
// would, and so would a watch of any file by its handle, or a connection of the
// node's to a peer that knows nothing of it. These are accepted only if
// [Allowed.Trusted] says that a trusted node has written the images.
//
// What is not checked is what the processes compute with: registers, signals,
// timers, the content of memory, pipes and sockets. Neither are names of hosts
// and limits of System V objects: those namespaces are the pod's. The caller starts CRIU
// in them, and [EnterNamespaces] has CRIU take them for the node's, which it leaves alone.
//
// TCP connections are kept in a network namespace of the pod's only, and only if both ends of
// each are in the images.
//
// # What is mended
//
// Before CRIU restores images, [SetFilter] puts in the seccomp filter of the request, and
// [WindTimers] has timers go on that CRIU would stop.
//
// # User namespaces
//
// That goes for the pod's user namespace, too. In there CRIU has no rights on the node but those of
// the pod, whatever the images have it do. It then goes without what only the node's root
// may: larger buffers of sockets than the node lets everybody have, for example. It is told so as
// "unprivileged". What it opens by path must be open to that user, and so the images are
// handed to it as a descriptor.
//
// A container is hostile: it decides how long CRIU takes and what is in its log.
// The time is bounded by the caller's context, the log in length, and its text
// is [untrusted.String] material until it has been escaped.
package criu
