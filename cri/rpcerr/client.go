package rpcerr

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Missing reports whether the server answered that an object does not exist.
func Missing(err error) bool { return status.Code(err) == codes.NotFound }

// Unserved reports whether no answer came from a server of the CRI: nobody
// listens, or what listens does not speak it.
func Unserved(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.Unimplemented
}

// Message is the text of a server's error, without gRPC's own words.
func Message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
