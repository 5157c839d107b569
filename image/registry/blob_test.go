package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// partAnswer answers a request for a blob as a host that is odd about parts.
type partAnswer func(f *fake, w http.ResponseWriter, r *http.Request)

// part answers with the bytes from start on and a Content-Range.
func part(start int, contentRange string, more ...string) partAnswer {
	return func(f *fake, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			w.Write(f.blob)
			return
		}

		if contentRange != "" {
			w.Header().Set("Content-Range", contentRange)
		}
		for i := 0; i < len(more); i += 2 {
			w.Header().Set(more[i], more[i+1])
		}

		w.WriteHeader(http.StatusPartialContent)
		w.Write(f.blob[start:])
	}
}

// refusing answers requests for parts with a status, and others with the blob.
func refusing(code int) partAnswer {
	return func(f *fake, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(code)
			return
		}
		w.Write(f.blob)
	}
}

// TestBlobFrom asks for the rest of a blob of 200,000 bytes, from byte 150,000
// on. Who does not send that, and nothing else, is asked for the whole.
func TestBlobFrom(t *testing.T) {
	const offset = 150_000
	for name, c := range map[string]struct {
		answer   partAnswer // nil is as it should be
		start    int64
		requests int
	}{
		"as it should be":        {nil, offset, 1},
		"no total":               {part(offset, "bytes 150000-199999/*"), offset, 1},
		"from further up":        {part(100_000, "bytes 100000-199999/200000"), offset, 1},
		"coded like its file":    {part(offset, "bytes 150000-199999/200000", "Content-Encoding", "gzip"), offset, 1},
		"coded":                  {part(offset, "bytes 150000-199999/*", "Content-Encoding", "gzip"), 0, 2},
		"knows no parts":         {func(f *fake, w http.ResponseWriter, _ *http.Request) { w.Write(f.blob) }, 0, 1},
		"not satisfiable":        {refusing(http.StatusRequestedRangeNotSatisfiable), 0, 2},
		"a later part":           {part(150_001, "bytes 150001-199999/200000"), 0, 2},
		"another part":           {part(0, "bytes 0-49999/200000"), 0, 2},
		"of another total":       {part(offset, "bytes 150000-199999/200001"), 0, 2},
		"beyond the end":         {part(offset, "bytes 150000-200000/*"), 0, 2},
		"without Content-Range":  {part(offset, ""), 0, 2},
		"of another unit":        {part(offset, "pages 150000-199999/200000"), 0, 2},
		"not a number":           {part(offset, "bytes 150000-x/200000"), 0, 2},
		"negative":               {part(offset, "bytes -1-199999/200000"), 0, 2},
		"more than 64 bits hold": {part(offset, "bytes 150000-199999/99999999999999999999"), 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, nil)
			if c.answer != nil {
				f.answer = func(w http.ResponseWriter, r *http.Request) bool { c.answer(f, w, r); return true }
			}

			body, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), f.desc(), offset, &Attempts{})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()

			data, err := io.ReadAll(body)
			if err != nil || body.Start() != c.start || !bytes.Equal(data, f.blob[c.start:]) {
				t.Errorf("%d bytes from %d, %v; want them from %d", len(data), body.Start(), err, c.start)
			}

			asked := f.requests("Range")
			if len(asked) != c.requests || !strings.HasSuffix(asked[0], "bytes=150000-199999") {
				t.Errorf("asked %q, want %d requests", asked, c.requests)
			}
		})
	}
}

// TestBlobFromAnother asks a mirror that has no parts first, and has the part
// from the next host.
func TestBlobFromAnother(t *testing.T) {
	mirror, up := newFake(t, nil), newFake(t, nil)
	mirror.answer = func(w http.ResponseWriter, r *http.Request) bool {
		refusing(http.StatusRequestedRangeNotSatisfiable)(mirror, w, r)
		return true
	}

	r := repository(t, "h.io/app:v1", nil, fmt.Sprintf("server = %q\n[host.%q]\n", up.URL, mirror.URL))
	body, err := r.Blob(t.Context(), up.desc(), 150_000, &Attempts{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()

	if data, err := io.ReadAll(body); err != nil || !bytes.Equal(data, up.blob[150_000:]) || body.Start() != 150_000 {
		t.Errorf("%d bytes from %d, %v", len(data), body.Start(), err)
	}
	if m, u := mirror.requests("Range"), up.requests("Range"); len(m) != 1 || len(u) != 1 {
		t.Errorf("the mirror was asked %q, the registry %q", m, u)
	}
}

// TestBlobFromNobody has every host refuse the part and the whole.
func TestBlobFromNobody(t *testing.T) {
	for code, want := range map[int]error{http.StatusRequestedRangeNotSatisfiable: ErrProtocol, http.StatusNotFound: ErrNotFound} {
		f := newFake(t, status(code))
		if _, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), f.desc(), 150_000, &Attempts{}); !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", code, err, want)
		}
	}
}

// TestBlobResumesWithoutParts cuts a download once; the host then refuses to
// send parts. What was read already is passed over.
func TestBlobResumesWithoutParts(t *testing.T) {
	for name, answer := range map[string]partAnswer{
		"not satisfiable":  refusing(http.StatusRequestedRangeNotSatisfiable),
		"of another total": part(70_000, "bytes 70000-199999/200001"),
	} {
		f := newFake(t, nil)
		var cuts atomic.Int32
		f.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if cuts.Add(1) == 1 {
				return cut(f, 70_000)(w, r)
			}
			answer(f, w, r)
			return true
		}

		body, err := repository(t, f.host+"/app", nil, "").Blob(t.Context(), f.desc(), 0, &Attempts{})
		if err != nil {
			t.Fatal(err)
		}

		data, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(data, f.blob) || body.Start() != 0 {
			t.Errorf("%s: %d bytes from %d, %v", name, len(data), body.Start(), err)
		}
		body.Close()
	}
}
