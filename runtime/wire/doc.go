// Package wire is the protocol between the daemon and the keeper: a closed set
// of messages over a SEQPACKET unix socket; descriptors are passed as
// SCM_RIGHTS.
//
//	[ daemon ]                           [ keeper ]
//	  Hello{Version}          -------->
//	                          <--------   Hello{Version}, or Fail(CodeVersion) and EOF
//	  Upgrade + program       -------->   in place of Hello: execute that program
//	                          <--------   EOF, or Done if it is the same, or Fail
//	  Start + files           -------->   clone, run the plan
//	                          <--------   Waiting{Pid}       if Start.Gate: the child waits at its first gate
//	  Proceed{OK}             -------->   let it continue, or kill it
//	                          <--------   Started + files, or Fail
//	  Cancel                  -------->   cancel a start under way; Started or Fail still follows
//	  List                    -------->
//	                          <--------   Entry + files ...  one for each held ID
//	                          <--------   Done
//	  Adopt + files           -------->   take over an entry of a dead keeper
//	  Replace + files         -------->   a child of the keeper's is the process from now on
//	  Reopen, Attach,
//	  CloseKept, Forget       -------->
//	                          <--------   Done, or Fail    to each of these
//	                          <--------   Exited             at any time, to every daemon
//
// A request carries a sequence number that its replies repeat; Exited has the
// number 0. Proceed and Cancel carry the number of their Start. Replies to
// requests on one connection come in any order.
//
// # Descriptors
//
// Each descriptor has a [Role], its purpose; [Files] is a set of them. The
// descriptors held for an ID have the same roles everywhere: in these messages,
// in the keeper's table, in the state that one keeper program leaves to the
// next, and in the service manager's store.
//
//	role                            Start  Started  Entry  Adopt
//	plan, input...                    x
//	pidfd, terminal, ns/NAME                  x       x      x
//	stdout, stdout/spool, stderr, …   x               x      x
//	log                               x               x      x
//	former...                                                x
//	keep/NAME                         x               x      x
//
// Replace has what Adopt has, without former. Reopen has a log, Attach stdout/sink and stderr/sink, Upgrade a program. Each
// message's Check method reports missing, unexpected and duplicate descriptors.
//
// # Packets
//
// A packet is: type (1 byte), sequence (4 bytes), payload, roles of the
// descriptors if there are any (both as of package pack). The kernel takes 253
// descriptors a packet; more are sent ahead of their message in packets of type
// More. A plan is sent in a sealed memfd.
//
// An invalid packet ends the connection and nothing else. When a daemon's
// connection ends, starts that wait for its Proceed are cancelled; started
// processes are kept.
//
// # Versions
//
// Peers of different versions refuse each other; then the daemon has the keeper
// execute the daemon's version. Hello, Fail and Upgrade, which this takes, have
// the same form in all versions.
package wire
