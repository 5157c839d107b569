package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Errors of parsing.
var (
	// ErrInvalidReference means that a string is not an image reference.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrConfig means that a hosts.toml or a certificate it names is unusable.
	ErrConfig = errors.New("invalid registry configuration")
)

// Errors of requests. They classify the registry's response for the caller.
var (
	// ErrUnavailable means that there was no usable response: the name does not
	// resolve, nothing listens, TLS fails, the server is overloaded or broken.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrDenied means that the credentials, if any, are not sufficient.
	ErrDenied = errors.New("access denied")
	// ErrNotFound means that the registry has no such manifest or blob.
	ErrNotFound = errors.New("image not found")
	// ErrProtocol means that the response violates the protocol.
	ErrProtocol = errors.New("malformed registry response")
)

// HopError is the error of a request to one host.
type HopError struct {
	// URL is what was requested, without credentials and query.
	URL string
	Err error
}

func (e *HopError) Error() string { return e.URL + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *HopError) Unwrap() error { return e.Err }

// hopErrors joins the errors of all hosts that were tried. It has the class of the
// last one: the registry itself comes after its mirrors.
type hopErrors []*HopError

func (e hopErrors) Error() string {
	parts := make([]string, len(e))
	for i, h := range e {
		parts[i] = h.Error()
	}
	return strings.Join(parts, "; ")
}

func (e hopErrors) Unwrap() error { return e[len(e)-1] }

// statusError is an unexpected HTTP status.
type statusError struct {
	code   int
	detail string
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("HTTP status %d %s", e.code, http.StatusText(e.code))
	if e.code < http.StatusBadRequest {
		s = "unexpected " + s
	}
	if e.detail != "" {
		s += " (" + e.detail + ")"
	}
	return s
}

// Is maps the status to one of the package's classes.
func (e *statusError) Is(target error) bool {
	switch {
	case e.code == http.StatusUnauthorized, e.code == http.StatusForbidden:
		return target == ErrDenied
	case e.code == http.StatusNotFound, e.code == http.StatusGone:
		return target == ErrNotFound
	case e.code == http.StatusTooManyRequests, e.code == http.StatusRequestTimeout, e.code >= 500:
		return target == ErrUnavailable
	default:
		return target == ErrProtocol
	}
}

// transportError classifies an error of the HTTP client: the caller's own
// cancellation is returned unchanged, anything else makes the registry
// unavailable.
func transportError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}

	// What was to be sent could not be read: the registry has no part in that.
	var source *sourceError
	if errors.As(err, &source) {
		return source.err
	}

	// Its text has the whole URL, whose query may be a credential.
	var request *url.Error
	if errors.As(err, &request) {
		err = fmt.Errorf("%s %s: %w", request.Op, hostOf(request.URL), request.Err)
	}

	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrProtocol) || errors.Is(err, ErrDenied) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// hostOf is the host of a URL, for error messages.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "a malformed URL"
	}
	return clean(u.Host)
}
