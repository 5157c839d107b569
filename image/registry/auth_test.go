package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// basicAuth asks for u:p in Basic form.
func basicAuth(w http.ResponseWriter, r *http.Request) bool {
	if u, p, ok := r.BasicAuth(); ok && u == "u" && p == "p" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func TestBasicAuth(t *testing.T) {
	f := newFake(t, basicAuth)
	for name, auth := range map[string]*Auth{
		"password": {Username: "u", Password: "p"},
		"auth":     {Auth: base64.StdEncoding.EncodeToString([]byte("u:p"))},
		"server":   {Username: "u", Password: "p", ServerAddress: f.URL},
	} {
		if _, err := repository(t, f.host+"/app", auth, "").Manifest(t.Context(), ignored{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	for name, auth := range map[string]*Auth{
		"none":         nil,
		"wrong":        {Username: "u", Password: "x"},
		"other server": {Username: "u", Password: "p", ServerAddress: "other.io"},
	} {
		if _, err := repository(t, f.host+"/app", auth, "").Manifest(t.Context(), ignored{}); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v, want %v", name, err, ErrDenied)
		}
	}
}

// tokenServer asks for a bearer token, which it gives out itself.
func tokenServer(t *testing.T, give func(r *http.Request) string) *fake {
	var f *fake
	f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if token := give(r); token != "" {
				fmt.Fprintf(w, `{"token":%q}`, token)
			} else {
				w.WriteHeader(http.StatusUnauthorized)
			}
			return true
		}
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}

		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="svc",scope="repository:app:pull"`, f.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})

	return f
}

func TestBearerAuth(t *testing.T) {
	f := tokenServer(t, func(r *http.Request) string {
		if err := r.ParseForm(); err != nil {
			return ""
		}
		if r.Form.Get("service") != "svc" || r.Form.Get("scope") != "repository:app:pull" {
			return ""
		}
		if r.Method == http.MethodPost {
			if r.Form.Get("grant_type") == "refresh_token" && r.Form.Get("refresh_token") == "identity" {
				return "good"
			}
			return ""
		}

		if u, p, ok := r.BasicAuth(); ok && (u != "u" || p != "p") {
			return ""
		}
		return "good"
	})

	for name, auth := range map[string]*Auth{
		"anonymous":      nil,
		"password":       {Username: "u", Password: "p"},
		"identity token": {IdentityToken: "identity"},
		"registry token": {RegistryToken: "good"},
	} {
		r := repository(t, f.host+"/app", auth, "")
		if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	for name, auth := range map[string]*Auth{
		"wrong password":       {Username: "u", Password: "x"},
		"wrong identity token": {IdentityToken: "x"},
		"wrong registry token": {RegistryToken: "x"},
	} {
		if _, err := repository(t, f.host+"/app", auth, "").Manifest(t.Context(), ignored{}); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v, want %v", name, err, ErrDenied)
		}
	}
}

func TestOneTokenForAllRequests(t *testing.T) {
	var given atomic.Int32
	f := tokenServer(t, func(*http.Request) string { given.Add(1); return "good" })
	r := repository(t, f.host+"/app", nil, "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	if n := given.Load(); n != 1 {
		t.Errorf("%d tokens were asked for", n)
	}
}
