// Package spawn clones a child and runs a plan in it, system call by system
// call, without a Go runtime in the child.
//
// It has the only unsafe code of the runtime. Everything that the child uses is
// laid out in memory before the clone; in the child one nosplit loop makes raw
// system calls and reports over a socket:
//
//	[ child ]                      [ caller of Start ]
//	  Step.Fork done     -------->  Forked   (the plan continues in another process)
//	  ArgPassFD          -------->  Passed   (a descriptor)
//	  before ArgSync     -------->  Waiting  (then the child blocks)
//	                     <--------  Release
//	  before execve      -------->
//	  socket closed by execve --->  Executed
//	  a step failed      -------->  *StepError
//
// # What a child has
//
// A child is a separate process from its first instruction: its parent never
// blocks on it, and no limit of the child affects its parent. Of its parent's
// memory it has the code and the plan. The Go heap, which has data of other
// containers, is never copied (MADV_DONTFORK), and the first thing a child does
// is unmap the rest. A helper program would achieve the same, for another
// execve per start; sharing the parent's memory (CLONE_VM) would be faster
// still, but then a container's limits kill the parent (memory.oom.group), and
// its processes can read the parent's memory.
//
//	                     memory           descriptors       capabilities  root
//	cloned               code, plan       inputs, socket    all           the node's
//	before a Fork        code, plan       inputs, socket    as the plan   as the plan
//	after one, Exposed   code, plan       0-2, socket       the program's the container's
//	after execve         the program's    0-2               the program's the container's
//
// A child is undumpable if its parent is. One that other processes in a
// container can see before its execve is Exposed by its plan: it has no more
// privileges than they by then. Its socket is useless to a process that steals
// it: the kernel reports the sender's PID with each report, only those of the
// plan's own processes count, and of an exposed one only that it failed.
//
// Nor does a child copy the descriptors of a keeper that holds thousands: a
// [Cloner] clones from a thread whose table has only the child's.
//
// A child starts with no signal blocked or ignored, umask 0, and no descriptors
// but 0, 1, 2, its inputs and its socket. It exits at its next report, and so
// never reaches execve, once the caller is gone or called [Child.Abort]; after
// execve it is independent of the caller.
//
// A seccomp filter that a plan loads must allow write(2), read(2) and
// exit_group(2), which the reports use.
package spawn
