package checkpoint

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOpenKey makes a key once, whoever asks for it.
func TestOpenKey(t *testing.T) {
	root := t.TempDir()
	const several = 8
	keys := make([]PublicKey, several)
	var wg sync.WaitGroup
	for n := range keys {
		wg.Go(func() {
			k, err := OpenKey(root)
			if err != nil {
				t.Error(err)
				return
			}
			keys[n] = k.Public()
		})
	}

	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || k == (PublicKey{}) {
			t.Errorf("keys %v", keys)
		}
	}
	if got, err := ParseKey(keys[0].String()); err != nil || got != keys[0] {
		t.Errorf("read again: %v, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(root, "checkpoint.key"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}

	const rsa = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"
	for name, text := range map[string]string{"empty": "", "no key": "hello", "another kind": rsa, "long": strings.Repeat("x", maxKey+1)} {
		if err := os.WriteFile(filepath.Join(root, "checkpoint.key"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKey(root); err == nil || !strings.Contains(err.Error(), "checkpoint.key") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPolicy(t *testing.T) {
	own, other, third := newKey(t).Public(), newKey(t).Public(), newKey(t).Public()
	for name, c := range map[string]struct {
		list                         []string
		own, other, unsigned, listed bool
	}{
		"default": {[]string{ThisNode}, true, false, false, true},
		"others":  {[]string{ThisNode, other.String()}, true, true, false, true},
		"another": {[]string{other.String()}, false, true, false, true},
		"any":     {[]string{Anybody}, true, true, true, true},
		"nobody":  {nil, false, false, false, true},

		"any with others": {list: []string{Anybody, ThisNode}},
		"no key":          {list: []string{"that-node"}},
		"short key":       {list: []string{base64.StdEncoding.EncodeToString(make([]byte, 31))}},
		"nobody's key":    {list: []string{base64.StdEncoding.EncodeToString(make([]byte, 32))}},
	} {
		p, err := ParsePolicy(c.list, own)
		if c.listed != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for signer, want := range map[PublicKey]bool{own: c.own, other: c.other, third: c.own && c.other && c.unsigned, {}: c.unsigned} {
			if err := p.Check(signer); want != (err == nil) || err != nil && !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s: of %q: %v", name, signer, err)
			}
		}
	}
}

// repacked changes entries of an archive; change returns nil to leave one out.
func repacked(t *testing.T, archive []byte, change func(h *tar.Header, text []byte) []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		text, rerr := io.ReadAll(r)
		if err = errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}

		if text = change(h, text); text == nil {
			continue
		}
		h.Size = int64(len(text))
		err = w.WriteHeader(h)
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestChangedArchives changes what was signed.
func TestChangedArchives(t *testing.T) {
	key := newKey(t)
	archive, digest := written(t, key)
	another, _ := written(t, newKey(t))
	terms := Terms{Bytes: 1 << 20, From: Policy{keys: []PublicKey{key.Public()}}}
	older := func(h *tar.Header, text []byte) []byte { h.ModTime = h.ModTime.Add(-time.Hour); return text }
	at := func(name string, do func(h *tar.Header, text []byte) []byte) func(*tar.Header, []byte) []byte {
		return func(h *tar.Header, text []byte) []byte {
			if h.Name == name {
				return do(h, text)
			}
			return text
		}
	}

	for name, c := range map[string]struct {
		archive []byte
		digest  string
		want    error
	}{
		"as it was":             {archive, digest, nil},
		"packed again":          {repacked(t, archive, older), "", nil},
		"packed again, of pod":  {repacked(t, archive, older), digest, nil},
		"of another node":       {another, "", ErrUntrusted},
		"another of the pod":    {another, digest, ErrInvalid},
		"without its signature": {repacked(t, archive, at("crisp.manifest", func(*tar.Header, []byte) []byte { return nil })), "", ErrUntrusted},
		"unsigned, of pod":      {repacked(t, archive, at("crisp.manifest", func(*tar.Header, []byte) []byte { return nil })), digest, ErrInvalid},
		"changed, of pod":       {repacked(t, archive, at("checkpoint/pages-1.img", func(_ *tar.Header, b []byte) []byte { b[7]++; return b })), digest, ErrInvalid},
		"changed":               {repacked(t, archive, at("checkpoint/pages-1.img", func(_ *tar.Header, b []byte) []byte { b[7]++; return b })), "", ErrInvalid},
		"longer":                {repacked(t, archive, at("checkpoint/pages-1.img", func(_ *tar.Header, b []byte) []byte { return append(b, 0) })), "", ErrInvalid},
		"less":                  {repacked(t, archive, at("deleted.files", func(*tar.Header, []byte) []byte { return nil })), "", ErrInvalid},
		"log, not unpacked":     {repacked(t, archive, at("container.log", func(_ *tar.Header, b []byte) []byte { return b[1:] })), "", ErrInvalid},
		"renamed":               {repacked(t, archive, at("checkpoint/pages-1.img", func(h *tar.Header, b []byte) []byte { h.Name = "checkpoint/pages-2.img"; return b })), "", ErrInvalid},
		"more": {repacked(t, archive, at("crisp.manifest", func(h *tar.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(`"keyid":"`), []byte(`"keyid":"A`), 1)
		})), "", ErrInvalid},
		"another's key": {repacked(t, archive, at("crisp.manifest", func(h *tar.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(key.Public().String()), []byte(newKey(t).Public().String()), 1)
		})), "", ErrInvalid},
	} {
		terms.Digest = c.digest
		if u, err := unpack(t, c.archive, terms); !errors.Is(err, c.want) || c.want == nil && (err != nil || u.Signer != key.Public()) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestPodManifest signs a pod's checkpoint, and changes it.
func TestPodManifest(t *testing.T) {
	key := newKey(t)
	archive, digest := written(t, key)
	from := Policy{keys: []PublicKey{key.Public()}}
	for name, c := range map[string]struct {
		change func(dir string) error
		from   Policy
		want   error
	}{
		"as it was":         {func(string) error { return nil }, from, nil},
		"of nobody":         {func(dir string) error { return os.Remove(filepath.Join(dir, PodManifest)) }, from, ErrUntrusted},
		"of nobody, to any": {func(dir string) error { return os.Remove(filepath.Join(dir, PodManifest)) }, Policy{anybody: true}, nil},
		"of another node":   {func(string) error { return nil }, Policy{keys: []PublicKey{newKey(t).Public()}}, ErrUntrusted},
		"changed":           {func(dir string) error { return os.WriteFile(filepath.Join(dir, PodFile), []byte(`{"x":2}`), 0o600) }, from, ErrInvalid},
		"no dump":           {func(dir string) error { return os.Remove(filepath.Join(dir, PodFile)) }, from, ErrInvalid},
		"a device": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, PodFile)), os.Symlink("/dev/zero", filepath.Join(dir, PodFile)))
		}, from, ErrInvalid},
		"a container's manifest": {func(dir string) error {
			var text []byte
			repacked(t, archive, func(h *tar.Header, b []byte) []byte {
				if h.Name == manifestFile {
					text = b
				}
				return b
			})
			return os.WriteFile(filepath.Join(dir, PodManifest), text, 0o600)
		}, from, ErrInvalid},
	} {
		path := t.TempDir()
		err := os.WriteFile(filepath.Join(path, "container-0.tar"), archive, 0o600)
		if err == nil {
			err = key.SignPod(path, []byte(`{"x":1}`), map[string]string{"container-0.tar": digest})
		}
		dir, oerr := os.Open(path)
		if err = errors.Join(err, oerr, c.change(path)); err != nil {
			t.Fatal(name, err)
		}
		defer dir.Close()

		p, err := OpenPod(dir, c.from)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err != nil {
			continue
		}
		f, got, err := p.Archive("container-0.tar")
		if err != nil || string(p.Dump) != `{"x":1}` || (got == digest) != (p.Signer != PublicKey{}) {
			t.Errorf("%s: %v, digest %q of %q", name, err, got, p.Dump)
		} else {
			f.Close()
		}
		for _, other := range []string{PodFile, PodManifest, "../x", "container-1.tar", ""} {
			if f, _, err := p.Archive(other); err == nil {
				t.Errorf("%s: archive %q is %v", name, other, f.Name())
			}
		}
	}
}
