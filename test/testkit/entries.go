package testkit

import (
	"archive/tar"
	"errors"
	"io"
	"testing"
)

// Entry is what a tar archive has under a name.
type Entry struct {
	*tar.Header
	Data []byte
}

// Entries reads a tar archive to its end, by name.
func Entries(t testing.TB, r io.Reader) map[string]*Entry {
	t.Helper()
	all := map[string]*Entry{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}

		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = &Entry{h, data}
	}
}
