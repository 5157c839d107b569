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

// Rule gives errors that wrap Err a code.
type Rule struct {
	Err  error
	Code codes.Code
	// Token, if not nil, is put in front of the message of such an error from
	// PullImage, for kubelet to recognise, and makes its code Unknown there.
	Token error
	// Begins puts Err's own text in front of the message of every such error.
	Begins bool
}

// Mapper maps errors to codes.
type Mapper struct {
	rules []Rule
}

// New returns a mapper for a table, of which the first matching rule applies.
// Context errors and errors of the kernel need no rules. Shortage of memory or
// descriptors is checked before the table, because it makes anything fail and
// may look like an unreachable registry, for instance; the others are checked
// after it.
func New(table []Rule) *Mapper {
	return &Mapper{rules: slices.Concat(
		[]Rule{
			{Err: syscall.ENOMEM, Code: codes.ResourceExhausted},
			{Err: syscall.ENOBUFS, Code: codes.ResourceExhausted},
			{Err: syscall.EMFILE, Code: codes.ResourceExhausted},
			{Err: syscall.ENFILE, Code: codes.ResourceExhausted},
		},
		table,
		[]Rule{
			{Err: context.DeadlineExceeded, Code: codes.DeadlineExceeded},
			{Err: context.Canceled, Code: codes.Canceled},
			{Err: syscall.ENOSPC, Code: codes.ResourceExhausted},
			{Err: syscall.EDQUOT, Code: codes.ResourceExhausted},
			{Err: syscall.EAGAIN, Code: codes.ResourceExhausted}, // process limit reached
			{Err: syscall.EROFS, Code: codes.FailedPrecondition},
			// Errors of paths in a request, or below one of those.
			{Err: syscall.ENAMETOOLONG, Code: codes.InvalidArgument},
			{Err: syscall.ENOTDIR, Code: codes.FailedPrecondition},
			{Err: syscall.ELOOP, Code: codes.FailedPrecondition},
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

// Status returns the error that a call returns to its client, nil for nil. An
// error that is already a gRPC status keeps its code.
//
// kubelet compares the beginning of PullImage's error messages with its tokens,
// but only if the code is Unknown; so that is the code of an error whose rule
// has a token.
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
		return status.Error(codes.Internal, message(err.Error()))
	case rule.Token != nil && isPull(method):
		return status.Error(codes.Unknown, message(withToken(rule.Token, err)))
	}

	if rule.Begins {
		return status.Error(rule.Code, message(withToken(rule.Err, err)))
	}
	return status.Error(rule.Code, message(err.Error()))
}

// maxText bounds the text of an error, which is sent in a header.
const maxText = 16 << 10

// message returns the text of an error for clients. It may quote a plugin, a
// registry or a file name, and is shown on terminals.
func message(text string) string { return untrusted.Of(text).Message(maxText) }

// fromStatus keeps a status, except Unknown, which means that a code is missing
// somewhere.
func fromStatus(s *status.Status) error {
	if s.Code() == codes.Unknown {
		return status.Error(codes.Internal, message(s.Message()))
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
