package main

import (
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"crisp/test/testkit/lab"
)

// TestStorageIsServed stores an index and gets it back whole, by tag and digest.
func TestStorageIsServed(t *testing.T) {
	index, err := random.Index(1000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	tag, err := parseTag("some/image:1")
	if err != nil {
		t.Fatal(err)
	}

	if err := storage(dir).add(tag, index); err != nil {
		t.Fatal(err)
	}
	registry, err := lab.ServeStorage(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	}()

	want, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}

	for _, ref := range []string{"some/image:1", "some/image@" + want.String()} {
		r, err := name.ParseReference(registry.Addr + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}

		got, err := remote.Index(r)
		if err != nil {
			t.Fatalf("get %s: %v", ref, err)
		}

		if digest, err := got.Digest(); err != nil || digest != want {
			t.Errorf("%s has digest %v, %v, want %v", ref, digest, err, want)
		}
		if err := storage(t.TempDir()).add(tag, got); err != nil { // which reads it all
			t.Errorf("%s: %v", ref, err)
		}
	}
	refuses(t, "http://"+registry.Addr, want.String())
}

// refuses requests content that the storage does not have, or not there.
func refuses(t *testing.T, registry, digest string) {
	t.Helper()
	for _, path := range []string{
		"/v2/some/image/manifests/2", "/v2/other/manifests/" + digest, "/v2/some/image/blobs/" + digest,
		"/v2/some/image/manifests/..%2f1", "/v2/some/image/manifests/%2e%2e", "/v2/../v2/image/manifests/1", "/",
	} {
		resp, err := http.Get(registry + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close() // the status is what counts
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: status %d, want 404", path, resp.StatusCode)
		}
	}
}

func TestParseTag(t *testing.T) {
	for _, bad := range []string{"", "image", "image:", "UPPER:1"} {
		if tag, err := parseTag(bad); err == nil {
			t.Errorf("%q is taken for %s", bad, tag)
		}
	}
	if tag, err := parseTag("library/busybox:latest"); err != nil || tag.RepositoryStr() != "library/busybox" || tag.TagStr() != "latest" {
		t.Errorf("got %v, %v", tag, err)
	}
}
