package registry

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestChallengesInAnyOrder offers ways to authenticate of which only some work.
func TestChallengesInAnyOrder(t *testing.T) {
	for name, offers := range map[string][]string{
		"basic, then a token server that is away": {`Basic realm="x"`, `Bearer realm="http://127.0.0.1:1/token"`},
		"a token server that is away, then basic": {`Bearer realm="http://127.0.0.1:1/token",service="s"`, `Basic realm="x"`},
		"in one header": {`Negotiate, Bearer realm="none", Basic realm="x"`},
		"no realm":      {`Bearer service="s"`, `Basic realm="x"`},
		"unknown ones":  {"Negotiate", "NTLM abc==", `Digest realm="a", qop="auth,auth-int"`, `Basic realm="x"`},
	} {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if u, p, ok := r.BasicAuth(); ok && u == "u" && p == "p" {
				return false
			}
			for _, o := range offers {
				w.Header().Add("WWW-Authenticate", o)
			}
			w.WriteHeader(http.StatusUnauthorized)
			return true
		})

		if _, err := repository(t, f.host+"/app", &Auth{Username: "u", Password: "p"}, "").Manifest(t.Context(), ignored{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBasicRefusedThenToken offers both, and refuses the first.
func TestBasicRefusedThenToken(t *testing.T) {
	var f *fake
	f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"access_token":"good"}`)
			return true
		case r.Header.Get("Authorization") == "Bearer good":
			return false
		}

		w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
		w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, f.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})

	if _, err := repository(t, f.host+"/app", &Auth{Username: "u", Password: "p"}, "").Manifest(t.Context(), ignored{}); err != nil {
		t.Error(err)
	}
}

// TestTokenServerElsewhere has it on another port, failing at first, with an
// answer that a proxy has packed.
func TestTokenServerElsewhere(t *testing.T) {
	var asked atomic.Int32
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			w.WriteHeader(http.StatusBadGateway)
		default:
			if r.FormValue("service") != "s" || r.FormValue("own") != "1" || strings.Join(r.Form["scope"], ";") != "repository:app:pull" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			fmt.Fprint(z, `{"token":"good","expires_in":60}`)
			z.Close()
		}
	}))

	defer tokens.Close()
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token?own=1",service="s"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})

	if _, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{}); err != nil {
		t.Error(err)
	}
}

// TestTokenServerLeadsAway keeps an identity token from going where a token
// server redirects to.
func TestTokenServerLeadsAway(t *testing.T) {
	var got atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { got.Add(1) }))
	defer thief.Close()
	var f *fake
	f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, f.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})

	for _, auth := range []*Auth{{IdentityToken: "secret"}, {Username: "u", Password: "p"}, nil} {
		if _, err := repository(t, f.host+"/app", auth, "").Manifest(t.Context(), ignored{}); !errors.Is(err, ErrProtocol) {
			t.Errorf("error %v, want %v", err, ErrProtocol)
		}
	}

	if got.Load() > 0 {
		t.Error("the redirect was followed")
	}
}

// TestRedirectedHostChallenges redirects to a host that wants a token of its
// own, and no credentials of this registry.
func TestRedirectedHostChallenges(t *testing.T) {
	var other *fake
	other = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			if r.Header.Get("Authorization") != "" || r.FormValue("scope") != "other" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			fmt.Fprint(w, `{"token":"other-token"}`)
			return true
		case r.Header.Get("Authorization") == "Bearer other-token":
			return false
		}

		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",scope="other"`, other.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})

	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); !ok || u != "u" || p != "p" {
			return basicAuth(w, r)
		}
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})

	r := repository(t, f.host+"/app", &Auth{Username: "u", Password: "p"}, "")
	if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
		t.Fatal(err)
	}

	for _, sent := range other.requests("Authorization") {
		if strings.Contains(sent, "Basic") {
			t.Errorf("the other host got %s", sent)
		}
	}
}

// TestDroppedOnce ends connections at different moments, once each.
func TestDroppedOnce(t *testing.T) {
	for name, drop := range map[string]func(w http.ResponseWriter){
		"before the answer": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"in the document": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(len(manifestBody)))
			io.WriteString(w, manifestBody[:10])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		var n atomic.Int32
		f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
			if n.Add(1) == 1 {
				drop(w)
			}
			return false
		})

		var data bytes.Buffer
		if _, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), &data); err != nil || data.String() != manifestBody {
			t.Errorf("%s: %q, %v", name, &data, err)
		}
	}
}

// TestContentCodings packs answers that nobody wanted packed.
func TestContentCodings(t *testing.T) {
	packed := func(data []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(data)
		z.Close()
		return b.Bytes()
	}

	f := newFake(t, nil)
	plainBlob := f.blob
	answer := func(w http.ResponseWriter, r *http.Request) bool {
		body := []byte(manifestBody)
		if strings.Contains(r.URL.Path, "/blobs/") {
			body = plainBlob
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(packed(body))
		return true
	}

	f.answer = answer
	r := repository(t, f.host+"/app", nil, "")
	var data bytes.Buffer
	if _, err := r.Manifest(t.Context(), &data); err != nil || data.String() != manifestBody {
		t.Errorf("manifest %q, %v", &data, err)
	}

	wantBlob(t, r, f)
	// A blob that is packed itself, whose store says so.
	f.blob = packed(plainBlob)
	f.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Encoding", "gzip")
		return false
	}
	wantBlob(t, r, f)
}

func wantBlob(t *testing.T, r *Repository, f *fake) {
	t.Helper()
	body, err := r.Blob(t.Context(), f.desc(), 0, &Attempts{})
	if err != nil {
		t.Error(err)
		return
	}
	defer body.Close()
	if data, err := io.ReadAll(body); err != nil || !bytes.Equal(data, f.blob) {
		t.Errorf("%d of %d bytes, %v", len(data), len(f.blob), err)
	}
}

// TestBadMirrors asks mirrors first that fail in all ways: the registry itself
// has the last word, for documents and for blobs.
func TestBadMirrors(t *testing.T) {
	stall := func(w http.ResponseWriter, r *http.Request) bool {
		io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"refuses":            status(http.StatusForbidden),
		"is broken":          status(http.StatusInternalServerError),
		"cuts":               func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
		"stalls":             stall,
		"answers never":      func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		"answers with pages": func(w http.ResponseWriter, _ *http.Request) bool { io.WriteString(w, "<html>"); return true },
		"cuts the body": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "1000000")
			io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"packs oddly": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, "?")
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mirror, up := newFake(t, answer), newFake(t, nil)
			r := repository(t, "h.io/app@"+digestOf(manifestBody), nil, fmt.Sprintf("server = %q\n[host.%q]\n", up.URL, mirror.URL))
			r.progress, r.document = 300*time.Millisecond, 300*time.Millisecond

			for _, h := range r.hops {
				h.client.Transport.(*http.Transport).ResponseHeaderTimeout = 300 * time.Millisecond
			}
			start := time.Now()
			var data bytes.Buffer
			if _, err := r.Manifest(t.Context(), &data); err != nil || data.String() != manifestBody {
				t.Errorf("manifest %q, %v", &data, err)
			}

			if err := r.Config(t.Context(), up.desc(), ignored{}); err != nil {
				t.Errorf("configuration: %v", err)
			}
			for range 6 {
				wantGood(t, r, up)
			}

			// What is too slow is so once.
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

// wantGood reads a blob as a caller does who compares digests.
func wantGood(t *testing.T, r *Repository, up *fake) {
	t.Helper()
	var tries Attempts
	for {
		body, err := r.Blob(t.Context(), up.desc(), 0, &tries)
		if err != nil {
			t.Errorf("blob: %v", err)
			return
		}

		data, err := io.ReadAll(body)
		body.Close()
		if err == nil && bytes.Equal(data, up.blob) {
			return
		}

		if !tries.Blame(body) {
			t.Errorf("blob: %d bytes, %v, and nobody else has it", len(data), err)
			return
		}
	}
}

func digestOf(text string) string { return (&fake{blob: []byte(text)}).desc().Digest.String() }

// TestLyingMirror sends as many bytes as it should, and others.
func TestLyingMirror(t *testing.T) {
	mirror, up := newFake(t, nil), newFake(t, nil)
	mirror.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Write(bytes.Repeat([]byte("lies "), len(up.blob)/5))
		return true
	}
	r := repository(t, "h.io/app", nil, fmt.Sprintf("server = %q\n[host.%q]\n", up.URL, mirror.URL))
	wantGood(t, r, up)
	if n := len(mirror.requests("")); n != 1 {
		t.Errorf("the mirror was asked %d times", n)
	}
}

// TestBlobGoesOnElsewhere cuts a blob for good half way: the registry itself
// sends the other half.
func TestBlobGoesOnElsewhere(t *testing.T) {
	mirror, up := newFake(t, nil), newFake(t, nil)
	var n atomic.Int32
	mirror.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if n.Add(1) == 1 {
			return cut(mirror, 70_000)(w, r)
		}
		panic(http.ErrAbortHandler)
	}
	r := repository(t, "h.io/app", nil, fmt.Sprintf("server = %q\n[host.%q]\n", up.URL, mirror.URL))
	wantBlob(t, r, up)
	if got := up.requests("Range"); len(got) != 1 || !strings.Contains(got[0], "bytes=") {
		t.Errorf("the registry was asked %q", got)
	}
}

// TestLoopbackWithCertificates speaks TLS to a registry on this machine for
// which there are certificates, in the form without a hosts.toml.
func TestLoopbackWithCertificates(t *testing.T) {
	srv := httptest.NewUnstartedServer(&fake{blob: []byte("x")})
	srv.TLS = &tls.Config{}
	srv.StartTLS()
	defer srv.Close()

	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	own := filepath.Join(dir, u.Host)
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}

	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(own, "ca.crt"), cert, 0o600); err != nil {
		t.Fatal(err)
	}

	ref, err := ParseReference(u.Host + "/app")
	if err != nil {
		t.Fatal(err)
	}

	r, err := New(Options{ConfigDirs: []string{dir}}).Repository(ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
		t.Error(err)
	}
}
