package stream

import (
	"crypto/rand"
	"sync"
	"time"
)

const (
	// tokenLife is how long a client may take to use a URL.
	tokenLife = time.Minute
	// maxTokens bounds the unused URLs.
	maxTokens = 1000
)

// tokens are the requests that wait for their client, by URL path.
type tokens struct {
	mu     sync.Mutex
	issued map[string]issuedToken
}

type issuedToken struct {
	req     any
	issuer  any // see [Session]
	expires time.Time
}

func newTokens() *tokens { return &tokens{issued: map[string]issuedToken{}} }

// issue returns a path that cannot be guessed.
func (t *tokens) issue(verb string, issuer, req any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.issued) >= maxTokens {
		t.expire()
	}
	if len(t.issued) >= maxTokens {
		return "", ErrTooMany
	}
	path := "/" + verb + "/" + rand.Text()
	t.issued[path] = issuedToken{req, issuer, time.Now().Add(tokenLife)}
	return path, nil
}

// redeem returns what a path was issued for, once.
func (t *tokens) redeem(path string) (issuedToken, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.issued[path]
	delete(t.issued, path)
	if !ok || time.Now().After(p.expires) {
		return issuedToken{}, false
	}
	return p, true
}

func (t *tokens) expire() {
	now := time.Now()
	for path, p := range t.issued {
		if now.After(p.expires) {
			delete(t.issued, path)
		}
	}
}
