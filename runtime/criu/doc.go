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
//	tty[88:1]           the terminal
//
// Everything else, such as private tmpfs file systems with their content, is
// part of the dump.
//
// A container is hostile: it decides how long CRIU takes and what is in its log.
// The time is bounded by the caller's context, the log in length, and its text
// is [untrusted.String] material until it has been escaped.
package criu
