package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// storage serves, for reading, a directory in the form in which the distribution
// project's registry keeps its images. That registry takes minutes to build.
type storage string

// ServeStorage serves the directory on a free port of loopback.
func ServeStorage(dir string) (*Registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", dir, err)
	}

	server := &http.Server{Handler: storage(dir), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		err := server.Shutdown(ctx)
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
		return err
	}

	return &Registry{Addr: listener.Addr().String(), stop: stop}, nil
}

// ServeHTTP answers what a pull asks: manifests by tag or digest, and blobs.
func (s storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}

	if ok && rest == "" {
		return // the version is known
	}
	if repository, ref, ok := cut(rest, "/manifests/"); ok {
		s.manifest(w, r, repository, ref)
	} else if repository, ref, ok := cut(rest, "/blobs/"); ok {
		s.content(w, r, filepath.Join(repository, "_layers"), ref, "application/octet-stream")
	} else {
		http.NotFound(w, r)
	}
}

// cut splits a path into a repository and the requested object, both valid as
// file names.
func cut(path, kind string) (repository, ref string, ok bool) {
	repository, ref, ok = strings.Cut(path, kind)
	return repository, ref, ok && filepath.IsLocal(repository) && filepath.IsLocal(ref)
}

func (s storage) manifest(w http.ResponseWriter, r *http.Request, repository, ref string) {
	manifests := filepath.Join(repository, "_manifests")
	if _, err := digest.Parse(ref); err != nil {
		link, err := os.ReadFile(s.path("repositories", manifests, "tags", ref, "current", "link"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		ref = string(link)
	}

	// A registry stores no types with manifests: they contain their own.
	var content struct {
		MediaType string `json:"mediaType"`
	}

	if d, err := digest.Parse(ref); err == nil {
		data, _ := os.ReadFile(s.blob(d)) // a missing one is reported below
		_ = json.Unmarshal(data, &content)
	}
	s.content(w, r, filepath.Join(manifests, "revisions"), ref, content.MediaType)
}

// content serves the blobs that a repository has a link to.
func (s storage) content(w http.ResponseWriter, r *http.Request, links, ref, mediaType string) {
	d, err := digest.Parse(ref)
	if err == nil {
		_, err = os.Stat(s.path("repositories", links, d.Algorithm().String(), d.Encoded(), "link"))
	}
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeFile(w, r, s.blob(d))
}

func (s storage) blob(d digest.Digest) string {
	return s.path("blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

func (s storage) path(names ...string) string {
	return filepath.Join(append([]string{string(s), "docker", "registry", "v2"}, names...)...)
}
