// Package wire is the protocol between the daemon and the keeper: a closed set
// of messages over a SEQPACKET unix socket, descriptors travelling as SCM_RIGHTS.
//
//	[ daemon ]                           [ keeper ]
//	  Hello{Version}          -------->
//	                          <--------   Hello{Version}, or Fail(CodeVersion) and the end
//	  Upgrade + program       -------->   in place of Hello: go on as that program
//	                          <--------   the end, or Done if it is the same, or Fail
//	  Start + files           -------->   clone, run the plan
//	                          <--------   Waiting{Pid}       if Start.Gate: the child stands at its first gate
//	  Proceed{OK}             -------->   let it go on, or end it
//	                          <--------   Started + files, or Fail
//	  Cancel                  -------->   end a start under way; Started or Fail still comes
//	  List                    -------->
//	                          <--------   Entry + files ...  one for each thing that is held
//	                          <--------   Done
//	  Adopt + files           -------->   hold what a keeper that died has held
//	  Reopen, Attach,
//	  CloseKept, Forget       -------->
//	                          <--------   Done, or Fail    to each of these
//	                          <--------   Exited             at any time, to every daemon
//
// A request carries a sequence number that its answers repeat; Exited has the
// number 0. Proceed and Cancel bear the number of their Start. Requests on one
// connection are answered in any order.
//
// # Descriptors
//
// Each descriptor says what it is for by its [Role]; [Files] is a set of them.
// What is held for one ID has the same roles wherever it is: in these messages,
// in the keeper's table, in what one keeper program leaves to the next, and in
// the service manager's store.
//
//	role                            Start  Started  Entry  Adopt
//	plan, input...                    x
//	pidfd, terminal, ns/NAME                  x       x      x
//	stdout, stdout/spool, stderr, …   x               x      x
//	log                               x               x      x
//	former...                                                x
//	keep/NAME                         x               x      x
//
// Reopen has a log, Attach stdout/sink and stderr/sink, Upgrade a program. Each
// message's Check method finds what is missing, not expected or there twice.
//
// # Packets
//
// A packet is: type (1 byte), sequence (4 bytes), payload, roles of the
// descriptors if there are any (both as of package pack). The kernel takes 253
// descriptors a packet; more travel ahead of their message in packets of type
// More. A plan travels in a sealed memfd.
//
// A packet that makes no sense ends the connection and nothing else. When a
// daemon's connection ends, starts that wait for its Proceed end too; all that
// has started is kept.
//
// # Versions
//
// Peers of different versions refuse each other; then the daemon has the keeper
// continue as its own program. Hello, Fail and Upgrade, by which they find that
// out, have the same form in all versions.
package wire
