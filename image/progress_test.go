package image_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
)

// TestProgress looks at a pull that stands still in the middle of one of two layers.
func TestProgress(t *testing.T) {
	r := newRegistry(t)
	big, small := pack(t, text("a", random(3_000_000))), pack(t, text("b", "b"))
	r.push("app", "v1", ocispec.ImageConfig{}, big, small)
	goOn := make(chan struct{})
	r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, digestHex(big.data)) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(big.data)))
		w.Write(big.data[:1_000_000])
		w.(http.Flusher).Flush()
		<-goOn
		w.Write(big.data[1_000_000:])
		return true
	})

	s := open(t, t.TempDir())
	if list := s.Pulls(); len(list) > 0 {
		t.Errorf("pulls %+v before the first", list)
	}
	done := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), r.Host+"/app:v1", nil)
		done <- err
	}()

	size, bytes := int64(len(big.data)+len(small.data)), int64(1_000_000+len(small.data))
	waitFor(t, "the half of a layer", func() bool {
		list := s.Pulls()
		return len(list) == 1 && list[0].Bytes == bytes && list[0].Size == size && list[0].Layers == 2 && list[0].Present == 1 &&
			list[0].Ref == r.Host+"/app:v1" && !list[0].Began.IsZero()
	})

	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if list := s.Pulls(); len(list) > 0 {
		t.Errorf("pulls %+v after the last", list)
	}
}

// TestProgressOfHosts says which host a pull waits for, and which it has given up.
func TestProgressOfHosts(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	goOn := make(chan struct{})
	r.onRequest(func(http.ResponseWriter, *http.Request) bool { <-goOn; return false })
	dirs := t.TempDir()
	config := fmt.Sprintf("server = %q\n[host.\"http://127.0.0.1:1\"]\n", r.server.URL)
	if err := errors.Join(os.Mkdir(filepath.Join(dirs, "registry.example"), 0o755), os.WriteFile(filepath.Join(dirs, "registry.example", "hosts.toml"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}

	s := open(t, t.TempDir(), func(o *image.Options) { o.RegistryConfigDirs = []string{dirs} })
	done := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), "registry.example/app:v1", nil)
		done <- err
	}()
	waitFor(t, "the question", func() bool {
		list := s.Pulls()
		return len(list) == 1 && len(list[0].Asked) == 1 && list[0].Asked[0].Host == r.Host && time.Since(list[0].Asked[0].Since) < time.Minute &&
			list[0].Host == "" && strings.HasPrefix(list[0].Failed, "127.0.0.1:1: ") && strings.Contains(list[0].Failed, "refused")
	})
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
