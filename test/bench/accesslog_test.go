package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAccessLog(t *testing.T) {
	l := &accessLog{path: filepath.Join(t.TempDir(), "log")}
	add := func(text string) {
		t.Helper()
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}

	add(`127.0.0.1 - - [21/Nov/2026:12:00:00 +0000] "GET /v2/x/blobs/sha256:1 HTTP/1.1" 200 999 "" "x"` + "\n")
	l.skip()
	add(`127.0.0.1 - - [21/Nov/2026:12:00:00 +0000] "HEAD /v2/x/manifests/latest HTTP/1.1" 200 500 "" "x"
time="2026" level=error msg="something else"
127.0.0.1 - - [21/Nov/2026:12:00:00 +0000] "GET /v2/x/blobs/sha256:2 HTTP/1.1" 200 1000 "" "x"
127.0.0.1 - - [21/Nov/2026:12:00:00 +0000] "GET /v2/x/blobs/sha256:3 HTTP/1.1" 206 24 "" "x y"
`)

	if got, err := l.read(); err != nil || got != 1024 {
		t.Errorf("got %d, %v, want 1024", got, err)
	}
	if got, err := l.read(); err != nil || got != 0 {
		t.Errorf("read again: got %d, %v", got, err)
	}

	add(`127.0.0.1 - - [21/Nov/2026:12:00:00 +0000] "GET /v2/x HTTP/1.1" 200`)
	if _, err := l.read(); err == nil {
		t.Error("half a line was read")
	}
}
