package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// tokenTimeout bounds the time to get a token, with retries.
	tokenTimeout = time.Minute
	// maxToken bounds a token, which is sent with every request, and
	// maxTokenResponse the response that contains it, both in bytes.
	maxToken         = 32 << 10
	maxTokenResponse = 1 << 20
	// clientID identifies this client when it exchanges a refresh token.
	clientID = "crisp"
)

// token gets a bearer token from the server that a challenge names, which may be
// any host: by GET with or without a password, by POST with an identity token
// (https://distribution.github.io/distribution/spec/auth/token).
func (a *authorizer) token(ctx context.Context, c challenge) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	realm, err := a.realm(c)
	if err != nil {
		return "", err
	}

	client := http.Client{Transport: a.transport, CheckRedirect: sameServer}
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		token, wait, err := a.exchange(ctx, &client, realm, c)
		if err == nil || wait < 0 || attempt == maxRetries {
			return token, err
		}
		if err := sleep(ctx, max(wait, backoff)); err != nil {
			return "", err
		}
		backoff *= 2
	}
}

// realm returns the token server's URL.
func (a *authorizer) realm(c challenge) (*url.URL, error) {
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Scheme != "http" && realm.Scheme != "https" || realm.Host == "" || realm.User != nil {
		return nil, fmt.Errorf("%w: realm %q is not a URL of a token server", ErrProtocol, clean(c.params["realm"]))
	}
	if realm.Scheme == "http" && a.base.Scheme == "https" && !a.creds.empty() {
		return nil, fmt.Errorf("%w: token server %s would get credentials over plain HTTP", ErrProtocol, clean(realm.Host))
	}
	return realm, nil
}

// exchange requests a token once. After a transient error it returns the time to
// wait before the next attempt, after any other error a negative one.
func (a *authorizer) exchange(ctx context.Context, client *http.Client, realm *url.URL, c challenge) (token string, wait time.Duration, err error) {
	req, err := a.tokenRequest(ctx, realm, c)
	if err != nil {
		return "", -1, err
	}

	resp, err := client.Do(req)
	if err != nil {
		wait := time.Duration(-1)
		if dropped(err) {
			wait = 0
		}
		return "", wait, fmt.Errorf("%s: %w", clean(realm.Host), transportError(ctx, err))
	}

	if resp.StatusCode != http.StatusOK {
		wait, again := retryAfter(resp, 0)
		if !again {
			wait = -1
		}
		return "", wait, fmt.Errorf("%s: %w", clean(realm.Host), readStatus(resp))
	}
	defer resp.Body.Close()

	token, err = readToken(resp)
	return token, -1, err
}

func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, c challenge) (*http.Request, error) {
	u := *realm
	q := u.Query()
	if service := c.params["service"]; service != "" {
		q.Set("service", service)
	}

	if a.creds.identityToken != "" {
		q.Set("scope", strings.Join(a.scopes(c), " "))
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", a.creds.identityToken)
		q.Set("client_id", clientID)

		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(q.Encode()))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}

	q.Del("scope")
	for _, scope := range a.scopes(c) {
		q.Add("scope", scope)
	}

	if a.creds.username != "" {
		q.Set("account", a.creds.username)
	}
	u.RawQuery = q.Encode()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && !a.creds.empty() {
		req.SetBasicAuth(a.creds.username, a.creds.password)
	}
	return req, err
}

// scopes lists what a token is requested for: the scope of the challenge, and the
// permission to pull from the repository.
func (a *authorizer) scopes(c challenge) []string {
	list := []string{c.params["scope"], a.scope}
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	return slices.Compact(list)
}

func readToken(resp *http.Response) (string, error) {
	body, err := plain(resp)
	if err != nil {
		return "", err
	}

	var response struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(body, maxTokenResponse)).Decode(&response); err != nil {
		return "", fmt.Errorf("%w: response of the token server: %w", ErrProtocol, err)
	}

	for _, t := range []string{response.Token, response.AccessToken} {
		if t != "" && len(t) <= maxToken && !strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return t, nil
		}
	}

	return "", fmt.Errorf("%w: token server sent no token, or one of more than %d bytes", ErrProtocol, maxToken)
}

// sameServer follows redirects of a token server only to the same server, since
// requests to it contain secrets.
func sameServer(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects || origin(req.URL) != origin(via[0].URL) || via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: token server redirects to %s", ErrProtocol, clean(req.URL.Host))
	}
	return nil
}
