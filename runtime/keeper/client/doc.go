// Package client is the daemon's side of the keeper: it finds or starts the
// keeper of a state directory and asks it to run plans.
//
// # The keeper's program
//
// [Connect] takes the path of the keeper's binary; empty means "crisp-keeper"
// next to the running executable. The binary is copied to a sealed memfd and
// run from there, so that nothing can modify the running program. The keeper
// has a session of its own and exits about a second after it holds nothing and
// no daemon is connected.
//
// The state directory holds
//
//	keeper-own.sock  the socket of a keeper started by a daemon, which
//	                 inherited it
//	keeper.sock      the socket of one started by the service manager; it is
//	                 used if nothing listens on the other
//	keeper.lock      locked while a daemon connects to or starts the keeper, and
//	                 while an idle keeper removes the socket
//	keeper.log       the keeper's standard error
//	exits/ID         a record of each exit that is not forgotten yet
package client
