package registry

import (
	"bytes"
	"context"
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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const manifestBody = `{"schemaVersion":2,"config":{},"layers":[]}`

// fake is a registry of one manifest and one blob.
type fake struct {
	*httptest.Server
	host string
	blob []byte

	mu   sync.Mutex
	seen []*http.Request
	// answer, if set, may answer in the registry's place.
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newFake(t *testing.T, answer func(w http.ResponseWriter, r *http.Request) bool) *fake {
	t.Helper()
	f := &fake{blob: bytes.Repeat([]byte("blob "), 40_000), answer: answer}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	u, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.host = u.Host
	return f
}

func (f *fake) desc() ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(f.blob), Size: int64(len(f.blob))}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, r.Clone(context.WithoutCancel(r.Context())))
	f.mu.Unlock()
	if f.answer != nil && f.answer(w, r) {
		return
	}

	switch {
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		io.WriteString(w, manifestBody)
	case strings.HasSuffix(r.URL.Path, f.desc().Digest.String()):
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.blob))
	default:
		http.NotFound(w, r)
	}
}

// requests lists what was asked: path and query, and the value of a header.
func (f *fake) requests(header string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, r := range f.seen {
		list = append(list, strings.TrimSpace(r.URL.RequestURI()+" "+r.Header.Get(header)))
	}
	return list
}

// ignored is a document that nobody reads.
type ignored struct{}

func (ignored) Write(p []byte) (int, error) { return len(p), nil }
func (ignored) Reset()                      {}

func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
}

func repository(t *testing.T, ref string, auth *Auth, hosts string) *Repository {
	t.Helper()
	parsed, err := ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	if hosts != "" {
		writeHosts(t, dir, parsed.Host, hosts)
	}

	c := New(Options{ConfigDirs: []string{dir}, ProgressTimeout: time.Minute})
	r, err := c.Repository(parsed, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestManifest(t *testing.T) {
	f := newFake(t, nil)
	var data bytes.Buffer
	doc, err := repository(t, f.host+"/app:v1", nil, "").Manifest(t.Context(), &data)
	if err != nil || data.String() != manifestBody || doc.Size != int64(data.Len()) || doc.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("%+v, %v", doc, err)
	}

	if _, err := repository(t, f.host+"/app@"+doc.Digest.String(), nil, "").Manifest(t.Context(), ignored{}); err != nil {
		t.Error(err)
	}
	other := digest.FromString("other")
	if _, err := repository(t, f.host+"/app@"+other.String(), nil, "").Manifest(t.Context(), ignored{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("wrong bytes for a digest: %v, want %v", err, ErrProtocol)
	}

	sha512 := digest.SHA512.FromString(manifestBody)
	if _, err := repository(t, f.host+"/app@"+sha512.String(), nil, "").Manifest(t.Context(), ignored{}); err != nil {
		t.Errorf("SHA-512: %v", err)
	}
}

func TestManifestTooLarge(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		for range MaxDocument/1024 + 10 {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				break
			}
		}
		return true
	})
	if _, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("error %v, want %v", err, ErrProtocol)
	}
}

func TestErrorClasses(t *testing.T) {
	for code, want := range map[int]error{
		400: ErrProtocol, 401: ErrDenied, 403: ErrDenied, 404: ErrNotFound, 418: ErrProtocol,
	} {
		f := newFake(t, status(code))
		_, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), fmt.Sprint(code)) || !strings.Contains(err.Error(), f.host) {
			t.Errorf("%d: %v, want %v with host and status", code, err, want)
		}
	}

	closed := newFake(t, nil)
	closed.Close()
	for name, ref := range map[string]string{"refused": closed.host + "/app", "no such name": "no-such-host.invalid/app"} {
		if _, err := repository(t, ref, nil, "").Manifest(t.Context(), ignored{}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, want %v", name, err, ErrUnavailable)
		}
	}

	tls := httptest.NewTLSServer(http.NotFoundHandler())
	defer tls.Close()
	r := repository(t, "h.io/app", nil, fmt.Sprintf("server = %q\n", tls.URL))
	if _, err := r.Manifest(t.Context(), ignored{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("unknown authority: %v, want %v", err, ErrUnavailable)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := newFake(t, nil)
	if _, err := repository(t, f.host+"/app", nil, "").Manifest(ctx, ignored{}); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRegistryExplains(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"errors":[{"code":"DENIED","message":"quota\nexceeded"}]}`)
		return true
	})
	_, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{})
	if err == nil || !strings.Contains(err.Error(), "DENIED: quota exceeded") {
		t.Errorf("error %v", err)
	}
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name    string
		fails   int32
		code    int
		after   string
		want    error
		minimum time.Duration
	}{
		{"too many requests", 2, 429, "", nil, firstBackoff},
		{"as long as asked", 1, 503, "1", nil, time.Second},
		{"longer than sensible", 1, 429, "3600", ErrUnavailable, 0},
		{"for good", 100, 503, "0", ErrUnavailable, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n atomic.Int32
			f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
				if n.Add(1) > c.fails {
					return false
				}
				if c.after != "" {
					w.Header().Set("Retry-After", c.after)
				}
				w.WriteHeader(c.code)
				return true
			})

			start := time.Now()
			_, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{})
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}

			if d := time.Since(start); d < c.minimum {
				t.Errorf("took %s, want at least %s", d, c.minimum)
			}
		})
	}
}

func TestMirrors(t *testing.T) {
	dead := newFake(t, nil)
	dead.Close()
	for _, c := range []struct {
		name   string
		mirror func(http.ResponseWriter, *http.Request) bool
	}{{"not found", status(404)}, {"broken", status(500)}, {"busy", status(429)}, {"denied", status(401)}, {"forbidden", status(403)}} {
		t.Run(c.name, func(t *testing.T) {
			mirror, up := newFake(t, c.mirror), newFake(t, nil)
			hosts := fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\ncapabilities=[\"pull\"]\n[host.%q]\n", up.URL, dead.URL, mirror.URL+"/pullonly", mirror.URL)
			r := repository(t, "h.io/app:v1", &Auth{Username: "u", Password: "p"}, hosts)
			if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
				t.Fatal(err)
			}

			body, err := r.Blob(t.Context(), up.desc(), 0, &Attempts{})
			if err != nil {
				t.Fatal(err)
			}
			body.Close()

			digest := up.desc().Digest.String()
			want := fmt.Sprint([]string{"/v2/app/manifests/v1?ns=h.io", "/pullonly/v2/app/blobs/" + digest + "?ns=h.io", "/v2/app/blobs/" + digest + "?ns=h.io"})
			if got := fmt.Sprint(mirror.requests("Authorization")); got != want {
				t.Errorf("mirror saw %s, want %s", got, want)
			}
		})
	}
}

func TestMirrorServes(t *testing.T) {
	mirror, up := newFake(t, nil), newFake(t, nil)
	r := repository(t, "h.io/app:v1", nil, fmt.Sprintf("server = %q\n[host.%q]\n[host.%q.header]\nX-Key = \"v\"\n", up.URL, mirror.URL, mirror.URL))
	if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(mirror.requests("X-Key")); got != "[/v2/app/manifests/v1?ns=h.io v]" {
		t.Errorf("mirror saw %s", got)
	}
	if got := up.requests(""); len(got) != 0 {
		t.Errorf("upstream saw %v", got)
	}
}

func TestErrorListsEveryHop(t *testing.T) {
	mirror, up := newFake(t, status(500)), newFake(t, status(404))
	r := repository(t, "h.io/app:v1", nil, fmt.Sprintf("server = %q\n[host.%q]\n", up.URL, mirror.URL))
	_, err := r.Manifest(t.Context(), ignored{})
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v, want the upstream's class", err)
	}
	for _, part := range []string{mirror.URL, "500", up.URL, "404"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not mention %s", err, part)
		}
	}
}

func TestCertificateAuthority(t *testing.T) {
	srv := httptest.NewTLSServer(&fake{blob: []byte("x")})
	defer srv.Close()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	host := strings.TrimPrefix(srv.URL, "https://")
	ref := Reference{Host: "h.io", Repo: "app", Tag: "v1"}
	for name, hosts := range map[string]string{
		"ca":          "ca = \"ca.pem\"\n",
		"ca list":     "ca = [\"ca.pem\"]\n",
		"skip verify": "skip_verify = true\n",
	} {
		dir := t.TempDir()
		writeHosts(t, dir, "h.io", fmt.Sprintf("server = %q\n%s", srv.URL, hosts))
		if err := os.WriteFile(filepath.Join(dir, "h.io", "ca.pem"), cert, 0o600); err != nil {
			t.Fatal(err)
		}

		r, err := New(Options{ConfigDirs: []string{dir}}).Repository(ref, nil)
		if err != nil {
			t.Fatal(err)
		}

		if _, err := r.Manifest(t.Context(), ignored{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r.Close()
	}

	// The older form: a directory with nothing but certificates.
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(dir, host, "x.crt"), cert, 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := certificates(filepath.Join(dir, host))
	if err != nil || conf == nil || conf.RootCAs == nil {
		t.Errorf("certificates: %v, %v", conf, err)
	}
}

// CVE-2020-15157: what is meant for the registry goes to nobody that it names.
func TestCVE202015157RedirectTakesNoCredentials(t *testing.T) {
	blobs := newFake(t, nil)
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if basicAuth(w, r) {
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, blobs.URL+r.URL.Path+"?signed=1", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})

	hosts := fmt.Sprintf("server = %q\n[header]\nX-Key = \"secret\"\n", f.URL)
	r := repository(t, "h.io/app", &Auth{Username: "u", Password: "p"}, hosts)
	body, err := r.Blob(t.Context(), blobs.desc(), 0, &Attempts{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()

	if data, err := io.ReadAll(body); err != nil || !bytes.Equal(data, blobs.blob) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	for _, h := range []string{"Authorization", "X-Key", "Cookie"} {
		want := "/v2/app/blobs/" + blobs.desc().Digest.String() + "?signed=1"
		if got := blobs.requests(h); len(got) != 1 || got[0] != want {
			t.Errorf("the other host saw %q, want %q", got, want)
		}
	}
}

func TestRedirectsThatAreRefused(t *testing.T) {
	for name, target := range map[string]string{
		"link-local address": "http://169.254.169.254/latest/meta-data",
		"scheme":             "file:///etc/passwd",
		"loop":               "",
	} {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, target+map[bool]string{true: r.URL.Path}[target == ""], http.StatusFound)
			return true
		})
		if _, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// cut serves the blob, ending the connection after some bytes of each answer.
func cut(f *fake, after int) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		start := 0

		if rng := r.Header.Get("Range"); rng != "" {
			fmt.Sscanf(rng, "bytes=%d-", &start)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(f.blob)-1, len(f.blob)))
		}

		w.Header().Set("Content-Length", fmt.Sprint(len(f.blob)-start))
		if start > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}

		w.Write(f.blob[start:min(start+after, len(f.blob))])
		if start+after < len(f.blob) {
			if after > 0 {
				w.(http.Flusher).Flush()
			}
			panic(http.ErrAbortHandler)
		}

		return true
	}
}

func TestBlobResumes(t *testing.T) {
	f := newFake(t, nil)
	f.answer = cut(f, 70_000)
	body, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), f.desc(), 0, &Attempts{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()

	data, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(data, f.blob) {
		t.Errorf("%d of %d bytes, %v", len(data), len(f.blob), err)
	}
	if n := len(f.requests("")); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

func TestBlobResumesWithoutRanges(t *testing.T) {
	f := newFake(t, nil)
	var n atomic.Int32
	f.answer = func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		if n.Add(1) == 1 {
			return cut(f, 70_000)(w, r)
		}
		return false
	}

	body, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), f.desc(), 0, &Attempts{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()

	if data, err := io.ReadAll(body); err != nil || !bytes.Equal(data, f.blob) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestBlobThatNeverEnds(t *testing.T) {
	for name, after := range map[string]int{"nothing more": 0} {
		f := newFake(t, nil)
		f.answer = cut(f, after)
		body, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), f.desc(), 0, &Attempts{})
		if err == nil {
			_, err = io.ReadAll(body)
			body.Close()
		}
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, want %v", name, err, ErrUnavailable)
		}
	}
}

func TestBlobSizes(t *testing.T) {
	f := newFake(t, nil)
	for name, delta := range map[string]int64{"shorter than it says": 1, "longer than it says": -1} {
		desc := f.desc()
		desc.Size += delta
		if _, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), desc, 0, &Attempts{}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v, want %v", name, err, ErrProtocol)
		}
	}

	// Without a length the reader stops one byte after the end.
	endless := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return true
			}
		}
	})

	body, err := repository(t, endless.host+"/app", nil, "").Blob(t.Context(), f.desc(), 0, &Attempts{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()

	if n, err := io.Copy(io.Discard, body); err != nil || n != f.desc().Size+1 {
		t.Errorf("%d bytes, %v; want %d", n, err, f.desc().Size+1)
	}
}

func TestStalledDownload(t *testing.T) {
	for _, path := range []string{"/blobs/", "/manifests/"} {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, path) {
				return false
			}
			io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		})

		r := repository(t, f.host+"/app", nil, "")
		r.progress = 300 * time.Millisecond
		var err error
		start := time.Now()

		if path == "/manifests/" {
			_, err = r.Manifest(t.Context(), ignored{})
		} else {
			var body *Blob
			if body, err = r.Blob(t.Context(), f.desc(), 0, &Attempts{}); err == nil {
				_, err = io.ReadAll(body)
				body.Close()
			}
		}

		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errStalled) {
			t.Errorf("%s: %v, want %v", path, err, errStalled)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: took %s", path, d)
		}
	}
}

// TestTransportErrorsHaveNoQuery expects of a redirected request's address the host
// alone: what follows may be a credential.
func TestTransportErrorsHaveNoQuery(t *testing.T) {
	cause := errors.New("connection refused")
	err := transportError(t.Context(), &url.Error{Op: "Get", URL: "https://user:pw@blobs.example.com/x?X-Amz-Signature=SECRET", Err: cause})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
	if text := err.Error(); strings.Contains(text, "SECRET") || strings.Contains(text, "pw") || !strings.Contains(text, "blobs.example.com") {
		t.Errorf("error %q", text)
	}
}
