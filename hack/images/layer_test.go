package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestTarOrder(t *testing.T) {
	tr := tree{}
	tr.link("/bin/a", "/bin/busybox")
	tr.file("/bin/busybox", 0o4755, []byte("program"))
	tr.symlink("/var/run", "../run")

	archive, err := tr.tar()
	if err != nil {
		t.Fatal(err)
	}

	seen := map[string]bool{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}

		if h.Typeflag == tar.TypeLink && !seen[h.Linkname] {
			t.Errorf("%s comes before %s, which it links to", h.Name, h.Linkname)
		}
		if h.Name == "bin/busybox" && (h.Mode != 0o4755 || h.Size != 7) {
			t.Errorf("got mode %o and size %d of %s", h.Mode, h.Size, h.Name)
		}
		seen[h.Name] = true
	}

	for _, want := range []string{"bin/", "bin/a", "bin/busybox", "var/", "var/run"} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}

	again, err := tr.tar()
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("packed twice, the tree differs (%v)", err)
	}
}
