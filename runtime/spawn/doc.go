// Package spawn clones a child and runs a plan in it, system call by system
// call, without starting a Go runtime on the other side.
//
// It holds the only unsafe code of the runtime. Everything the child will
// touch is laid out in memory before the clone; in the child one nosplit loop
// makes raw system calls and reports over a socket:
//
//	[ child ]                      [ caller of Start ]
//	  Step.Fork done     -------->  Forked   (the plan goes on in another process)
//	  ArgPassFD          -------->  Passed   (a descriptor)
//	  before ArgSync     -------->  Waiting  (then the child blocks)
//	                     <--------  Release
//	  before execve      -------->
//	  socket closed by execve --->  Executed
//	  a step failed      -------->  *StepError
//
// # What a child has
//
// A child is a process of its own from its first instruction: nothing waits
// for it, whatever stops it, and no limit that it meets falls on its parent.
// Of its parent's memory it has the code and the plan. The Go heap, which
// knows of other containers, is never copied (MADV_DONTFORK), and the first
// thing a child does is to unmap all the rest. A program executed for the
// purpose would give the same, for another execve a start; sharing the
// parent's memory would be faster still, but then a container's limits
// end the parent (memory.oom.group), and its processes see what it knows.
//
//	                     memory           descriptors       capabilities  root
//	born                 code, plan       inputs, socket    all           the node's
//	before a Fork        code, plan       inputs, socket    as the plan   as the plan
//	after one, Exposed   code, plan       0-2, socket       the program's the container's
//	after execve         the program's    0-2               the program's the container's
//
// A child is undumpable if its parent is. One that others in a container can see
// before its execve is Exposed by its plan: it is as poor as they are by then.
// Its socket is worth nothing to who takes it away: the kernel says of each
// report which process sent it, only those of the plan's own count, and of
// an exposed one only that it failed.
//
// A child begins with no signal blocked or ignored, umask 0, and no
// descriptor but 0, 1, 2, its inputs and its socket. It dies at its next
// report, and so never reaches execve, once the caller is gone or called
// [Child.Abort]; after execve nothing ties it to the caller.
//
// A seccomp filter that a plan loads must allow write(2), read(2) and
// exit_group(2), which the reports use.
package spawn
