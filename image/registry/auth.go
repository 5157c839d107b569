package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	tokenTimeout = time.Minute
	// maxChallenge bounds the header that says how to authenticate.
	maxChallenge = 8 << 10
	// maxChallenges and maxParams bound the ways to authenticate that are
	// looked at, and what each may say.
	maxChallenges = 16
	maxParams     = 16
	// maxToken bounds what is sent along with every request.
	maxToken = 32 << 10
)

// authorizer answers one host's challenges. It asks for nothing in advance:
// a registry that wants no authorization sees none.
type authorizer struct {
	transport http.RoundTripper
	base      *url.URL
	scope     string
	creds     credentials

	mu     sync.Mutex
	header string // the Authorization that the host accepted or may accept
}

// authorize adds what is known so far to a request.
func (a *authorizer) authorize(req *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.header == "" && a.creds.registryToken != "" {
		a.header = "Bearer " + a.creds.registryToken
	}
	if a.header != "" {
		req.Header.Set("Authorization", a.header)
	}
}

// challenged learns from a 401 answer how to authorize. It reports whether
// the request is worth repeating.
func (a *authorizer) challenged(ctx context.Context, resp *http.Response) (bool, error) {
	// Requests run side by side: one gets the token for all.
	a.mu.Lock()
	defer a.mu.Unlock()
	sent := resp.Request.Header.Get("Authorization")
	if a.header != "" && a.header != sent {
		return true, nil
	}
	if a.creds.registryToken != "" {
		return false, nil
	}
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		var header string
		switch c.scheme {
		case "basic":
			if a.creds.password == "" && a.creds.username == "" {
				continue
			}
			header = "Basic " + base64.StdEncoding.EncodeToString([]byte(a.creds.username+":"+a.creds.password))
		case "bearer":
			token, err := a.token(ctx, c)
			if err != nil {
				return false, err
			}
			header = "Bearer " + token
		default:
			continue
		}
		if header == sent {
			return false, nil // these credentials were refused
		}
		a.header = header
		return true, nil
	}
	return false, nil
}

// token gets a bearer token from the server that the challenge names.
func (a *authorizer) token(ctx context.Context, c challenge) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	opts := []name.Option{name.WeakValidation}
	insecure := a.base.Scheme == "http"
	if insecure {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(a.base.Host, opts...)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	tok, err := transport.Exchange(ctx, reg, a.authenticator(), a.transport, a.scopes(c), &transport.Challenge{
		Scheme: "Bearer", Parameters: c.params, Insecure: insecure,
	})
	if err != nil {
		return "", fmt.Errorf("get token: %w", tokenError(ctx, err))
	}
	for _, t := range []string{tok.Token, tok.AccessToken} {
		if t != "" && len(t) <= maxToken && !strings.ContainsAny(t, "\r\n") {
			return t, nil
		}
	}
	return "", fmt.Errorf("%w: token server sent no token, or one of more than %d bytes", ErrProtocol, maxToken)
}

// scopes are what a token is asked for: reading the repository, and whatever
// else the registry says it needs for this.
func (a *authorizer) scopes(c challenge) []string {
	if s := c.params["scope"]; s != "" && s != a.scope {
		return []string{s, a.scope}
	}
	return []string{a.scope}
}

func (a *authorizer) authenticator() authn.Authenticator {
	if a.creds.empty() {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: a.creds.username, Password: a.creds.password, IdentityToken: a.creds.identityToken,
	})
}

// tokenError classes a token server's error like a registry's.
func tokenError(ctx context.Context, err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		se := &statusError{code: te.StatusCode}
		if len(te.Errors) > 0 {
			se.detail = te.Errors[0].String()
		}
		return se
	}
	return transportError(ctx, err)
}

// challenge is one scheme that a WWW-Authenticate header offers.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers. What it cannot read ends
// the header it stands in.
func parseChallenges(headers []string) []challenge {
	var list []challenge
	for _, h := range headers {
		if len(h) > maxChallenge {
			continue
		}
		for h != "" && len(list) < maxChallenges {
			var scheme string
			scheme, h, _ = strings.Cut(strings.TrimLeft(h, " ,"), " ")
			if scheme == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			for {
				key, value, rest, ok := nextParam(h)
				h = rest
				if !ok {
					break
				}
				if len(c.params) < maxParams {
					c.params[strings.ToLower(key)] = value
				}
			}
			list = append(list, c)
		}
	}
	return list
}

// nextParam takes key=value or key="value" from the start of s.
func nextParam(s string) (key, value, rest string, ok bool) {
	s = strings.TrimLeft(s, " ,")
	eq := strings.IndexByte(s, '=')
	if eq <= 0 || strings.ContainsAny(s[:eq], " ,\"") {
		return "", "", s, false
	}
	key, s = s[:eq], s[eq+1:]
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ", ")
		if end < 0 {
			end = len(s)
		}
		return key, s[:end], s[end:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return key, b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", "", false
}

// errorDetail is the registry's own explanation in an error body, if it has
// the form that the protocol gives it.
func errorDetail(body []byte) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	e := doc.Errors[0]
	return strings.TrimSuffix(clean(e.Code)+": "+clean(e.Message), ": ")
}

// clean makes a stranger's text fit for an error message.
func clean(s string) string {
	const limit = 200
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
