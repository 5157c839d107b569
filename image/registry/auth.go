package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

const (
	// maxChallenge bounds a WWW-Authenticate header, in bytes.
	maxChallenge = 8 << 10
	// maxChallenges and maxParams bound the challenges that are considered, and
	// the parameters of each.
	maxChallenges = 16
	maxParams     = 16
)

// authorizer answers one host's challenges. It requests no token in advance: a
// registry that requires no authorization receives none.
type authorizer struct {
	transport http.RoundTripper
	base      *url.URL
	// scope is requested for a token in addition to the challenge's; "" for a
	// host that is only known from a redirect.
	scope string
	creds credentials

	mu     sync.Mutex
	header string // guarded by mu: the Authorization to send, "" if unknown
}

// authorize adds the authorization that is known so far to a request.
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

// challenged obtains authorization after a 401 response. It reports whether the
// request should be repeated. If one challenge cannot be answered, the next one
// that the host offers is tried.
func (a *authorizer) challenged(ctx context.Context, resp *http.Response) (bool, error) {
	// Requests are concurrent: the first one gets the token for all.
	a.mu.Lock()
	defer a.mu.Unlock()

	sent := resp.Request.Header.Get("Authorization")
	if a.header != "" && a.header != sent {
		return true, nil
	}
	if a.creds.registryToken != "" {
		return false, nil
	}

	var failed error
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		header, err := a.answer(ctx, c)
		if err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			failed = cmp.Or(failed, err)
			continue
		}

		if header == "" || header == sent {
			continue // not possible, or refused already
		}
		a.header = header
		return true, nil
	}

	return false, failed
}

// answer returns the Authorization for a challenge, "" if there is none.
func (a *authorizer) answer(ctx context.Context, c challenge) (string, error) {
	switch c.scheme {
	case "basic":
		if a.creds.password == "" && a.creds.username == "" {
			return "", nil
		}
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(a.creds.username+":"+a.creds.password)), nil
	case "bearer":
		token, err := a.token(ctx, c)
		if err != nil {
			return "", fmt.Errorf("get token: %w", err)
		}
		return "Bearer " + token, nil
	}
	return "", nil
}

// challenge is one scheme that a WWW-Authenticate header offers.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// parseChallenges parses WWW-Authenticate headers, each up to the first syntax
// error.
func parseChallenges(headers []string) []challenge {
	var list []challenge
	for _, h := range headers {
		if len(h) > maxChallenge {
			continue
		}
		for h != "" && len(list) < maxChallenges {
			c, rest := nextChallenge(h)
			if c.scheme == "" {
				break
			}
			list, h = append(list, c), rest
		}
	}

	return list
}

// nextChallenge takes a challenge from the start of h. Its scheme is "" if there
// is none.
func nextChallenge(h string) (c challenge, rest string) {
	h = strings.TrimLeft(h, " ,")
	end := strings.IndexAny(h, " ,")
	if end < 0 {
		end = len(h)
	}

	c = challenge{scheme: strings.ToLower(h[:end]), params: map[string]string{}}
	h = h[end:]
	for {
		key, value, rest, ok := nextParam(h)
		if !ok {
			return c, rest
		}
		if len(c.params) < maxParams {
			c.params[strings.ToLower(key)] = value
		}
		h = rest
	}
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

// errorDetail returns the registry's explanation from the body of an error, if it
// has the form that the protocol specifies.
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

// clean makes a hostile text fit for an error message: short, without control
// characters.
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
