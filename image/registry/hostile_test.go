package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// drip answers one byte at a time, for ever.
func drip(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, " "); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		time.Sleep(10 * time.Millisecond)
	}
}

// TestDrips reads from registries that never stop answering, too slowly to be
// of use and too fast to count as silent.
func TestDrips(t *testing.T) {
	manifest := func(ctx context.Context, r *Repository, _ ocispec.Descriptor) error {
		_, err := r.Manifest(ctx, ignored{})
		return err
	}
	for _, c := range []struct {
		name string
		path string
		code int
		do   func(ctx context.Context, r *Repository, desc ocispec.Descriptor) error
		want error
	}{
		{"manifest", "/manifests/", http.StatusOK, manifest, errStalled},
		{"configuration", "/blobs/", http.StatusOK, func(ctx context.Context, r *Repository, desc ocispec.Descriptor) error {
			return r.Config(ctx, desc, ignored{})
		}, errStalled},
		{"blob", "/blobs/", http.StatusOK, func(ctx context.Context, r *Repository, desc ocispec.Descriptor) error {
			body, err := r.Blob(ctx, desc, 0, &Attempts{})
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(io.Discard, body)
			return err
		}, errStalled},
		{"refusal", "/manifests/", http.StatusNotFound, manifest, ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
				w.WriteHeader(c.code)
				drip(w, r)
				return true
			})

			r := repository(t, f.host+"/app", nil, "")
			r.progress, r.document = time.Second, time.Second
			start := time.Now()
			if err := c.do(t.Context(), r, f.desc()); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}

			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %s", d)
			}

			// A caller that has had enough does not wait for any limit.
			r.progress, r.document = time.Minute, time.Minute
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()

			start = time.Now()
			if err := c.do(ctx, r, f.desc()); err == nil {
				t.Error("a cancelled request has no error")
			}
			if d := time.Since(start); d > 1300*time.Millisecond {
				t.Errorf("cancelled after 300ms, ended after %s", d)
			}
		})
	}
}

// TestBreakingOffIsDripping reads from a registry that ends the connection
// after every few bytes, which begins each answer's time anew.
func TestBreakingOffIsDripping(t *testing.T) {
	f := newFake(t, nil)
	f.answer = cut(f, 10)
	r := repository(t, f.host+"/app", nil, "")
	r.progress = time.Second

	body, err := r.Blob(t.Context(), f.desc(), 0, &Attempts{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()

	start := time.Now()
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, errStalled) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v, want %v", err, errStalled)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %s", d)
	}
}

// TestSlowIsNotStalled meters a download that is slow but on its way.
func TestSlowIsNotStalled(t *testing.T) {
	m := &meter{window: time.Minute}
	for range 1000 {
		if err := m.note(2*minRate, time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReach dials what a registry may and may not lead to. Names count by what
// they resolve to when they are dialled.
func TestReach(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}

	named := net.JoinHostPort("localhost", u.Port())
	for _, c := range []struct {
		name          string
		base, addr    string
		local, remote bool
		refused       bool
	}{
		{"registry on this machine", u.Host, u.Host, false, false, false},
		{"registry on this machine, by name", named, named, false, false, false},
		{"from there to here", u.Host, named, true, false, false},
		{"from elsewhere", "registry.example:443", u.Host, false, true, true},
		{"from elsewhere, by name", "registry.example:443", named, false, true, true},
		{"not known from where", "registry.example:443", named, false, false, true},
		{"from elsewhere, then rebound", named, named, false, true, true},
		{"from here and elsewhere", "registry.example:443", named, true, true, true},
	} {
		r := newReach(&url.URL{Scheme: "http", Host: c.base}, time.Second)
		r.local.Store(c.local)
		r.remote.Store(c.remote)
		conn, err := r.dial(t.Context(), "tcp4", c.addr)
		if err == nil {
			conn.Close()
		}

		if got := errors.Is(err, ErrProtocol); got != c.refused || !c.refused && err != nil {
			t.Errorf("%s: %v, refused should be %v", c.name, err, c.refused)
		}
	}
}

func TestRefusedAddresses(t *testing.T) {
	r := newReach(&url.URL{Scheme: "https", Host: "registry.example"}, time.Second)
	for addr, refused := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true, "64:ff9b::7f00:1": true,
		"169.254.169.254": true, "::ffff:169.254.169.254": true, "fe80::1%eth0": true, "0.0.0.0": true, "::": true,
		"224.0.0.1": true, "ff02::1": true, "255.255.255.255": true,
		"10.0.0.1": false, "192.168.1.1": false, "172.16.0.1": false, "fd00::1": false, "8.8.8.8": false, "2001:db8::1": false,
	} {
		if err := r.checkAddr(netip.MustParseAddr(addr)); (err != nil) != refused {
			t.Errorf("%s: %v, refused should be %v", addr, err, refused)
		}
	}

	for host, refused := range map[string]bool{"localhost": true, "x.LOCALHOST.": true, "[::1]:80": true, "cdn.example": false, "10.1.1.1": false} {
		if err := r.checkURL(&url.URL{Scheme: "https", Host: host}); (err != nil) != refused {
			t.Errorf("%s: %v, refused should be %v", host, err, refused)
		}
	}
}

// TestHugeAnswers asks registries that say too much where little is expected.
func TestHugeAnswers(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"header": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("X-Long", long)
			return false
		},
		"challenges": func(w http.ResponseWriter, _ *http.Request) bool {
			for i := range 100_000 {
				w.Header().Add("WWW-Authenticate", fmt.Sprintf("Bearer a%d=b", i))
			}
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
		"token": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				fmt.Fprintf(w, `{"token":%q}`, long[:maxToken+1])
				return true
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=\"http://%s/token\"", r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
		"explanation": func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"errors":[{"code":%q}]}`, long)
			return true
		},
	} {
		f := newFake(t, answer)
		_, err := repository(t, f.host+"/app", nil, "").Manifest(t.Context(), ignored{})
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if len(err.Error()) > 2000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}

	if n := len(parseChallenges([]string{strings.Repeat("Basic a=b,", 700), "Bearer c=d"})); n > maxChallenges {
		t.Errorf("%d challenges", n)
	}
}
