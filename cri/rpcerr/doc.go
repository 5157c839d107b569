// Package rpcerr is where errors become gRPC status codes, and where calls are
// logged.
//
// No other package knows the codes: the packages below return errors that wrap
// their sentinels, and a [Mapper] finds the code in one table. An error that
// the table does not know is [Internal], never Unknown: kubelet takes Unknown
// from PullImage, and only from there, as the mark of a message that begins
// with one of its own tokens, see [Mapper.Status].
package rpcerr
