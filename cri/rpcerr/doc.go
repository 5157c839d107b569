// Package rpcerr maps errors to gRPC status codes, and logs calls.
//
// No other package knows the codes: the packages below return errors that wrap
// their sentinels, and a [Mapper] finds the code in one table, which is package
// [crisp/cri/rpcerr/rules]. An error that the table does not cover is Internal,
// never Unknown: for kubelet, Unknown from PullImage announces a message that
// begins with one of its own tokens, see [Mapper.Status].
package rpcerr
