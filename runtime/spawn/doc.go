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
// Until it executes or forks, the child shares its parent's memory and only the
// thread that cloned it waits: a copy of the page tables would cost more than
// most plans. A process that others in a container can see is always one that
// forked, or the first of its own PID namespace, and a parent that starts
// containers should be undumpable, so that none of them can look into it.
//
// A child begins with no signal blocked or ignored, umask 0, and no
// descriptor but 0, 1, 2, its inputs and its socket. It dies at its next
// report, and so never reaches execve, once the caller is gone or called
// [Child.Abort]; after execve nothing ties it to the caller.
//
// A seccomp filter that a plan loads must allow write(2), read(2) and
// exit_group(2), which the reports use.
package spawn
