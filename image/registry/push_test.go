package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// shelf answers pushes, and keeps what they bring.
type shelf struct {
	mu   sync.Mutex
	kept map[string][]byte // by path
	open int               // uploads
}

func (s *shelf) serve(w http.ResponseWriter, r *http.Request) bool {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	uploads := "/v2/app/blobs/uploads/"
	switch {
	case r.Method == http.MethodHead:
		if _, ok := s.kept[r.URL.Path]; !ok {
			w.WriteHeader(http.StatusNotFound)
		}
	case r.Method == http.MethodPost && r.URL.Path == uploads:
		s.open++
		w.Header().Set("Location", uploads+"1?_state=a%2Fb")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, uploads):
		s.open--
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPut && r.URL.Path == uploads+"1" && r.URL.Query().Get("_state") == "a/b":
		s.open--
		s.kept["/v2/app/blobs/"+r.URL.Query().Get("digest")] = body
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/v2/app/manifests/"):
		s.kept[r.URL.Path+" "+r.Header.Get("Content-Type")] = body
		w.Header().Set(storedDigest, digest.FromBytes(body).String())
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
	return true
}

// newShelf is a registry for pushes. answer may answer in its place.
func newShelf(t *testing.T, answer func(http.ResponseWriter, *http.Request) bool) (*fake, *shelf) {
	t.Helper()
	s := &shelf{kept: map[string][]byte{}}
	return newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		return answer != nil && answer(w, r) || s.serve(w, r)
	}), s
}

// methods are those of the requests to a fake.
func (f *fake) methods() (list []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.seen {
		list = append(list, r.Method)
	}
	return list
}

func pusher(t *testing.T, ref string, auth *Auth, hosts string, progress time.Duration) *Pusher {
	t.Helper()
	parsed, err := ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if hosts != "" {
		writeHosts(t, dir, parsed.Host, hosts)
	}
	p, err := New(Options{ConfigDirs: []string{dir}, ProgressTimeout: progress}).Pusher(parsed, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// source opens bytes.
func source(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func TestPush(t *testing.T) {
	f, s := newShelf(t, nil)
	p := pusher(t, f.host+"/app:v1", nil, "", time.Minute)
	for i, want := range []bool{true, false} {
		if sent, err := p.Blob(t.Context(), f.desc(), source(f.blob)); err != nil || sent != want {
			t.Errorf("push %d: sent %t, %v", i, sent, err)
		}
	}
	m := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(manifestBody), Size: int64(len(manifestBody))}
	for _, byDigest := range []bool{true, false} {
		if err := p.Manifest(t.Context(), m, byDigest, source([]byte(manifestBody))); err != nil {
			t.Error(err)
		}
	}

	for path, want := range map[string]string{
		"/v2/app/blobs/" + f.desc().Digest.String():                  string(f.blob),
		"/v2/app/manifests/v1 " + m.MediaType:                        manifestBody,
		"/v2/app/manifests/" + m.Digest.String() + " " + m.MediaType: manifestBody,
	} {
		if got := string(s.kept[path]); got != want {
			t.Errorf("%s has %d bytes, want %d", path, len(got), len(want))
		}
	}
	if want := []string{"HEAD", "POST", "PUT", "HEAD", "PUT", "PUT"}; !slices.Equal(f.methods(), want) {
		t.Errorf("requests %q, want %q", f.methods(), want)
	}
	if err := p.Try(t.Context()); err != nil || s.open != 0 || len(s.kept) != 3 {
		t.Errorf("a try: %v, and %d uploads are open", err, s.open)
	}
}

// TestPushAsksForToken requires a token for pushes, and a new one when that of the upload
// has run out in the middle.
func TestPushAsksForToken(t *testing.T) {
	var f *fake
	var mu sync.Mutex
	given, refusals := 0, 0
	f, s := newShelf(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != "u" || p != "p" || !slices.Contains(r.URL.Query()["scope"], "repository:app:pull,push") {
				t.Errorf("the token is asked for with %v", r.URL.Query())
			}
			given++
			fmt.Fprintf(w, `{"token":"token%d"}`, given)
			return true
		}
		if r.Method == http.MethodPut && given == 1 || r.Header.Get("Authorization") != fmt.Sprint("Bearer token", given) {
			refusals++
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",scope="repository:app:pull"`, f.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})

	p := pusher(t, f.host+"/app", &Auth{Username: "u", Password: "p"}, "", time.Minute)
	if _, err := p.Blob(t.Context(), f.desc(), source(f.blob)); err != nil {
		t.Fatal(err)
	}
	if got := s.kept["/v2/app/blobs/"+f.desc().Digest.String()]; !bytes.Equal(got, f.blob) || given != 2 || refusals != 2 {
		t.Errorf("it has %d bytes, after %d tokens and %d refusals", len(got), given, refusals)
	}
}

// TestPushRefused is about registries that do not take a blob. None is asked for long, and
// each upload that was begun is given up.
func TestPushRefused(t *testing.T) {
	upload := func(location string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				w.Header().Set("Location", location)
				w.WriteHeader(http.StatusAccepted)
			}
			return r.Method == http.MethodPost
		}
	}
	answering := func(method string, code int, text string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == method {
				w.WriteHeader(code)
				io.WriteString(w, text)
			}
			return r.Method == method
		}
	}

	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		class  error
		says   string
		begun  bool
	}{
		"no credentials": {basicAuth, ErrDenied, "401 Unauthorized", false},
		"denied":         {answering("POST", 403, `{"errors":[{"code":"DENIED","message":"read only"}]}`), ErrDenied, "DENIED: read only", false},
		"unknown":        {answering("POST", 404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`), ErrNotFound, "NAME_UNKNOWN", false},
		"web page":       {answering("POST", 200, "<html>"), ErrProtocol, "unexpected HTTP status 200 OK", false},
		"nowhere":        {answering("POST", 202, ""), ErrProtocol, "does not say where", false},
		"file":           {upload("file:///etc/passwd"), ErrProtocol, "cannot be sent to", false},
		"with password":  {upload("http://u:p@h.io/"), ErrProtocol, "cannot be sent to", false},
		"metadata":       {upload("http://169.254.169.254/latest"), ErrProtocol, "169.254.169.254", false},
		"overloaded":     {answering("POST", 503, ""), ErrUnavailable, "503", false},
		"redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				http.Redirect(w, r, "/other", http.StatusFound)
			}
			return r.Method == http.MethodPost
		}, ErrProtocol, "redirect that makes GET of POST", false},
		"too large":  {answering("PUT", 413, ""), ErrProtocol, "413", true},
		"not stored": {answering("PUT", 200, "thanks"), ErrProtocol, "unexpected HTTP status 200 OK", true},
		"full":       {answering("PUT", 500, `{"errors":[{"code":"UNKNOWN","message":"no space"}]}`), ErrUnavailable, "no space", true},
		"other bytes": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				w.Header().Set(storedDigest, digest.FromString("other").String())
				w.WriteHeader(http.StatusCreated)
			}
			return r.Method == http.MethodPut
		}, ErrProtocol, "it has stored", true},
		"hangs up": {func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				panic(http.ErrAbortHandler)
			}
			return false
		}, ErrUnavailable, "EOF", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, s := newShelf(t, test.answer)
			p := pusher(t, f.host+"/app", nil, "", time.Minute)
			sent, err := p.Blob(t.Context(), f.desc(), source(f.blob))
			if sent || !errors.Is(err, test.class) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), f.URL+"/v2/app/blobs/") {
				t.Errorf("sent %t, error %v, want %v with %q", sent, err, test.class, test.says)
			}
			if n := len(f.methods()); n > 4*maxRetries {
				t.Errorf("%d requests: %q", n, f.methods())
			}
			if gone := slices.Contains(f.methods(), "DELETE"); gone != test.begun || s.open != 0 && test.begun {
				t.Errorf("%d uploads are open after %q", s.open, f.methods())
			}
		})
	}

	if err := pusher(t, "nothing.invalid/app", nil, "", time.Minute).Try(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "nothing.invalid") {
		t.Errorf("unknown host: %v", err)
	}
}

// TestPushElsewhere requires that a host to which the registry has an upload sent, by a
// Location or by a redirect, gets the blob and nothing else.
func TestPushElsewhere(t *testing.T) {
	for name, code := range map[string]int{"location": http.StatusAccepted, "redirect": http.StatusTemporaryRedirect} {
		t.Run(name, func(t *testing.T) {
			other, kept := newShelf(t, nil)
			f, _ := newShelf(t, func(w http.ResponseWriter, r *http.Request) bool {
				if basicAuth(w, r) {
					return true
				}
				if r.Method == http.MethodPost {
					w.Header().Set("Location", other.URL+"/v2/app/blobs/uploads/"+map[int]string{http.StatusAccepted: "1?_state=a%2Fb"}[code])
					w.WriteHeader(code)
				}
				return r.Method == http.MethodPost
			})

			hosts := fmt.Sprintf("server = %q\n[header]\nX-Key = \"secret\"\n", f.URL)
			p := pusher(t, "h.io/app", &Auth{Username: "u", Password: "p"}, hosts, time.Minute)
			if _, err := p.Blob(t.Context(), f.desc(), source(f.blob)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(kept.kept["/v2/app/blobs/"+f.desc().Digest.String()], f.blob) {
				t.Error("the other host does not have the blob")
			}
			for _, h := range []string{"Authorization", "X-Key", "Cookie"} {
				for _, r := range other.requests(h) {
					if strings.Contains(r, " ") {
						t.Errorf("the other host got %s: %s", h, r)
					}
				}
			}
		})
	}
}

// TestPushStaysEncrypted requires that nothing is sent over HTTP which was to be sent over
// HTTPS.
func TestPushStaysEncrypted(t *testing.T) {
	for name, code := range map[string]int{"location": http.StatusAccepted, "redirect": http.StatusTemporaryRedirect} {
		t.Run(name, func(t *testing.T) {
			plain, _ := newShelf(t, nil)
			secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				w.Header().Set("Location", plain.URL+"/v2/app/blobs/uploads/1")
				w.WriteHeader(code)
			}))
			defer secure.Close()

			p := pusher(t, "h.io/app", nil, fmt.Sprintf("server = %q\nskip_verify = true\n", secure.URL), time.Minute)
			_, err := p.Blob(t.Context(), plain.desc(), source(plain.blob))
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "without encryption") || len(plain.methods()) > 0 {
				t.Errorf("error %v, requests %q", err, plain.methods())
			}
		})
	}
}

// TestPushStalls is about a registry that takes nothing, or does not answer.
func TestPushStalls(t *testing.T) {
	for name, reads := range map[string]bool{"takes nothing": false, "does not answer": true} {
		t.Run(name, func(t *testing.T) {
			f, s := newShelf(t, func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut {
					return false
				}
				if reads {
					_, _ = io.Copy(io.Discard, r.Body)
				}
				select {
				case <-r.Context().Done():
				case <-time.After(4 * time.Second):
				}
				return true
			})

			began := time.Now()
			large := make([]byte, 64<<20) // more than the kernel takes for the peer
			desc := ocispec.Descriptor{Digest: digest.FromBytes(large), Size: int64(len(large))}
			_, err := pusher(t, f.host+"/app", nil, "", time.Second).Blob(t.Context(), desc, source(large))
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no response after 1s") || time.Since(began) > 15*time.Second {
				t.Errorf("after %s: %v", time.Since(began), err)
			}
			if s.open != 0 {
				t.Error("the upload was not given up")
			}
		})
	}
}

// TestPushAgain sends a blob again when the connection breaks.
func TestPushAgain(t *testing.T) {
	var once sync.Once
	f, s := newShelf(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			once.Do(func() {
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
				panic(http.ErrAbortHandler)
			})
		}
		return false
	})
	sent, err := pusher(t, f.host+"/app", nil, "", time.Minute).Blob(t.Context(), f.desc(), source(f.blob))
	if got := s.kept["/v2/app/blobs/"+f.desc().Digest.String()]; err != nil || !sent || !bytes.Equal(got, f.blob) {
		t.Errorf("sent %t, %d bytes, %v", sent, len(got), err)
	}
}

// TestPushStreams requires that a blob is never in memory as a whole.
func TestPushStreams(t *testing.T) {
	const size = 256 << 20
	f, _ := newShelf(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			if n, err := io.Copy(io.Discard, r.Body); n != size || r.ContentLength != size {
				t.Errorf("%d bytes arrived, %v", n, err)
			}
			w.WriteHeader(http.StatusCreated)
		}
		return r.Method == http.MethodPut
	})

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sent, err := pusher(t, f.host+"/app", nil, "", time.Minute).Blob(t.Context(), ocispec.Descriptor{Digest: digest.FromString("zeros"), Size: size},
		func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zeros{}, size)), nil })
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; !sent || err != nil || used > 8<<20 {
		t.Errorf("sent %t with %d bytes of memory, %v", sent, used, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestPushOfDamage requires that an error of the node's own disk is not called one of the
// registry's.
func TestPushOfDamage(t *testing.T) {
	f, s := newShelf(t, nil)
	damaged := errors.New("the blob is damaged")
	_, err := pusher(t, f.host+"/app", nil, "", time.Minute).Blob(t.Context(), f.desc(), func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(f.blob[:1000]), failing{damaged})), nil
	})
	if !errors.Is(err, damaged) || errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if len(s.kept) > 0 || s.open != 0 {
		t.Errorf("the registry has %d blobs, and %d uploads are open", len(s.kept), s.open)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestPushHost requires that a mirror gets a push only if its configuration says so.
func TestPushHost(t *testing.T) {
	for name, test := range map[string]struct{ hosts, want string }{
		"no configuration":     {"", "h.io"},
		"mirror":               {"[host.\"https://mirror\"]\n", "h.io"},
		"mirror for all":       {"[host.\"https://mirror\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n", "mirror"},
		"server":               {"server = \"https://server\"\n[host.\"https://mirror\"]\ncapabilities = [\"pull\"]\n", "server"},
		"registry as a mirror": {"[host.\"https://h.io\"]\ncapabilities = [\"pull\", \"resolve\"]\n", "h.io"},
		"nobody":               {"capabilities = [\"pull\", \"resolve\"]\n", ""},
	} {
		dir := t.TempDir()
		writeHosts(t, dir, "h.io", test.hosts)

		p, err := New(Options{ConfigDirs: []string{dir}}).Pusher(Reference{Host: "h.io", Repo: "app", Tag: "v1"}, nil)
		switch {
		case test.want == "":
			if !errors.Is(err, ErrConfig) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || p.Host() != test.want:
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestAuthFrom(t *testing.T) {
	const file = `{"auths": {
		"https://index.docker.io/v1/": {"auth": "dTpw"},
		"h.io": {"username": "all", "password": "p"},
		"h.io/team": {"username": "team", "password": "p"},
		"h.io/te": {"username": "prefix", "password": "p"},
		"token.io": {"username": "<token>", "password": "", "identitytoken": "refresh"},
		"empty.io": {}
	}, "credHelpers": {"helped.io": "secretservice"}}`
	for ref, want := range map[string]Auth{
		"busybox":             {Auth: "dTpw", ServerAddress: "docker.io"},
		"h.io/app":            {Username: "all", Password: "p", ServerAddress: "h.io"},
		"h.io/team/app":       {Username: "team", Password: "p", ServerAddress: "h.io"},
		"h.io:5000/app":       {},
		"token.io/app":        {IdentityToken: "refresh", ServerAddress: "token.io"},
		"empty.io/app":        {},
		"h.io.other.io/a/app": {},
	} {
		parsed, err := ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		got, err := AuthFrom([]byte(file), parsed)
		if got == nil {
			got = &Auth{}
		}
		if err != nil || *got != want {
			t.Errorf("%s: %#v %q, %v", ref, got, got.Username, err)
		}
	}

	if _, err := AuthFrom([]byte(file), Reference{Host: "helped.io", Repo: "app"}); err == nil || !strings.Contains(err.Error(), "secretservice") {
		t.Errorf("with a helper: %v", err)
	}
	if _, err := AuthFrom([]byte("secret"), Reference{Host: "h.io", Repo: "app"}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("of no file: %v", err)
	}
}
