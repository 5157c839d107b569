// Package client is the daemon's side of the keeper: it finds or starts the
// keeper of a state directory and asks it to run plans.
//
// # The keeper's program
//
// [Connect] takes the path of the keeper's binary; empty means "crisp-keeper"
// next to the running executable. The binary is copied to a sealed memfd and
// run from there, so that nothing can change it under the running process.
// The keeper is in a session of its own and ends by itself about a second
// after it holds nothing and no daemon is connected.
//
// The state directory holds
//
//	keeper-own.sock  the socket of a keeper that a daemon started and that
//	                 inherited it
//	keeper.sock      the socket of one that the service manager starts; it is
//	                 asked if nobody listens on the other
//	keeper.lock      locked while a daemon looks for or starts the keeper, and
//	                 while a keeper with nothing left removes the socket
//	keeper.log       the keeper's standard error
//	exits/ID         a record of each exit that was not yet forgotten
package client
