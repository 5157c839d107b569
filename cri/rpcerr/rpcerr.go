package rpcerr

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"crisp/runtime/untrusted"
)

// Code is a gRPC status code.
type Code = codes.Code

// The codes that a table may use, so that it need not import grpc.
const (
	Canceled           = codes.Canceled
	InvalidArgument    = codes.InvalidArgument
	DeadlineExceeded   = codes.DeadlineExceeded
	NotFound           = codes.NotFound
	AlreadyExists      = codes.AlreadyExists
	PermissionDenied   = codes.PermissionDenied
	Unauthenticated    = codes.Unauthenticated
	ResourceExhausted  = codes.ResourceExhausted
	FailedPrecondition = codes.FailedPrecondition
	Aborted            = codes.Aborted
	OutOfRange         = codes.OutOfRange
	Unimplemented      = codes.Unimplemented
	Internal           = codes.Internal
	Unavailable        = codes.Unavailable
	DataLoss           = codes.DataLoss
)

// Rule says that errors which wrap Err have a code.
type Rule struct {
	Err  error
	Code Code
	// Token begins the message of such an error from PullImage, for kubelet
	// to recognise, and makes its code Unknown there.
	Token error
	// Begins has Err's own text begin the message of every such error.
	Begins bool
}

// Mapper finds the codes of errors.
type Mapper struct {
	rules []Rule
}

// New returns a mapper over a table, in which the first rule that fits counts.
// Context errors and the limits of the machine need no rules. That it lacks
// memory or descriptors comes before the table's, since it makes anything fail,
// a registry seem away, for instance; the others come after them.
func New(table []Rule) *Mapper {
	return &Mapper{rules: slices.Concat(
		[]Rule{
			{Err: syscall.ENOMEM, Code: ResourceExhausted},
			{Err: syscall.ENOBUFS, Code: ResourceExhausted},
			{Err: syscall.EMFILE, Code: ResourceExhausted},
			{Err: syscall.ENFILE, Code: ResourceExhausted},
		},
		table,
		[]Rule{
			{Err: context.DeadlineExceeded, Code: DeadlineExceeded},
			{Err: context.Canceled, Code: Canceled},
			{Err: syscall.ENOSPC, Code: ResourceExhausted},
			{Err: syscall.EDQUOT, Code: ResourceExhausted},
			{Err: syscall.EAGAIN, Code: ResourceExhausted}, // no more processes
			{Err: syscall.EROFS, Code: FailedPrecondition},
			// Of paths, which a request names or which lie below one of those.
			{Err: syscall.ENAMETOOLONG, Code: InvalidArgument},
			{Err: syscall.ENOTDIR, Code: FailedPrecondition},
			{Err: syscall.ELOOP, Code: FailedPrecondition},
		})}
}

// Known reports whether the table has a rule for an error.
func (m *Mapper) Known(err error) bool {
	_, ok := m.rule(err)
	return ok
}

func (m *Mapper) rule(err error) (Rule, bool) {
	for _, r := range m.rules {
		if errors.Is(err, r.Err) {
			return r, true
		}
	}
	return Rule{}, false
}

// Status returns the error that a call answers with, nil for nil. An error
// that is a gRPC status already stays what it is.
//
// For PullImage kubelet compares the beginning of the message with its tokens,
// which it finds only behind code Unknown; so that is the code of an error
// whose rule has a token.
func (m *Mapper) Status(method string, err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return fromStatus(s)
	}

	rule, ok := m.rule(err)
	switch {
	case !ok:
		return status.Error(Internal, message(err.Error()))
	case rule.Token != nil && isPull(method):
		return status.Error(codes.Unknown, message(withToken(rule.Token, err)))
	}

	if rule.Begins {
		return status.Error(rule.Code, message(withToken(rule.Err, err)))
	}
	return status.Error(rule.Code, message(err.Error()))
}

// maxText is how long the text of an error may be: it travels in a header.
const maxText = 16 << 10

// message is the text of an error as clients get it. It may quote a plugin, a
// registry or a file's name, and is shown on terminals.
func message(text string) string { return untrusted.Of(text).Message(maxText) }

// fromStatus keeps a status, but for Unknown, which stands for a code that
// was forgotten.
func fromStatus(s *status.Status) error {
	if s.Code() == codes.Unknown {
		return status.Error(Internal, message(s.Message()))
	}
	return s.Err()
}

func isPull(method string) bool { return strings.HasSuffix(method, "/PullImage") }

func withToken(token, err error) string {
	message := err.Error()
	if strings.HasPrefix(message, token.Error()) {
		return message
	}
	return token.Error() + ": " + message
}
