package stream

import (
	"crypto/rand"
	"sync"
	"time"
)

const (
	// tokenLife is how long a client may take to use a URL.
	tokenLife = time.Minute
	// maxTokens is how many URLs may wait to be used.
	maxTokens = 1000
)

// tokens are the requests that wait for their client, by URL path.
type tokens struct {
	mu      sync.Mutex
	pending map[string]pending
}

type pending struct {
	req     any
	expires time.Time
}

func newTokens() *tokens { return &tokens{pending: map[string]pending{}} }

// issue returns a path that nobody can guess.
func (t *tokens) issue(verb string, req any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pending) >= maxTokens {
		t.expire()
	}
	if len(t.pending) >= maxTokens {
		return "", ErrTooMany
	}
	path := "/" + verb + "/" + rand.Text()
	t.pending[path] = pending{req, time.Now().Add(tokenLife)}
	return path, nil
}

// redeem returns the request that a path was issued for, once.
func (t *tokens) redeem(path string) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.pending[path]
	delete(t.pending, path)
	if !ok || time.Now().After(p.expires) {
		return nil, false
	}
	return p.req, true
}

func (t *tokens) expire() {
	now := time.Now()
	for path, p := range t.pending {
		if now.After(p.expires) {
			delete(t.pending, path)
		}
	}
}
