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
	// maxChallenge bounds the header that says how to authenticate.
	maxChallenge = 8 << 10
	// maxChallenges and maxParams bound the ways to authenticate that are
	// looked at, and what each may say.
	maxChallenges = 16
	maxParams     = 16
)

// authorizer answers one host's challenges. It asks for nothing in advance:
// a registry that wants no authorization sees none.
type authorizer struct {
	transport http.RoundTripper
	base      *url.URL
	// scope is what a token is for where the challenge does not say it, "" for
	// a host that only a redirect has named.
	scope string
	creds credentials

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
// the request is worth repeating. A way that fails is left for the next one
// that the host offers.
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
			continue // nothing to say, or refused already
		}
		a.header = header
		return true, nil
	}

	return false, failed
}

// answer is the Authorization for a challenge, "" if there is none.
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
			h = strings.TrimLeft(h, " ,")
			end := strings.IndexAny(h, " ,")
			if end < 0 {
				end = len(h)
			}
			if scheme, h = h[:end], h[end:]; scheme == "" {
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
