package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"slices"

	"crisp/runtime/untrusted"
)

// manifestFile is what a node says of the files of an archive, or of a pod's
// checkpoint, with its signature: an envelope of DSSE, the Dead Simple Signing
// Envelope (github.com/secure-systems-lab/dsse). It is the last file of an archive.
const manifestFile = "crisp.manifest"

const (
	// payloadType tells this signature from others that a key may once make.
	payloadType = "application/vnd.crisp.checkpoint.v1+json"
	// maxManifest bounds a manifest in bytes, maxFiles the files that it lists.
	maxManifest = 16 << 20
	maxFiles    = 1 << 16
)

// Kinds of what is signed: one cannot be taken for the other.
const (
	kindContainer = "container"
	// kindPod has the digests of the manifests of archives. Those of the first version had
	// those of whole archives.
	kindPod = "pod/2"
)

// manifest lists all other files.
type manifest struct {
	Kind  string
	Files []file
}

// file is what a file must be: Name as in an archive, size in bytes, sha256 as hex.
type file struct {
	Name   string
	Size   int64
	SHA256 string
}

// envelope has the names of DSSE.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// encoded is what is signed: pre-authentication encoding, in words of DSSE.
func encoded(payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// sign returns the envelope of a manifest.
func (k *Key) sign(m manifest) ([]byte, error) {
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	sig := signature{KeyID: k.Public().String(), Sig: ed25519.Sign(k.private, encoded(payload))}
	return json.Marshal(envelope{PayloadType: payloadType, Payload: payload, Signatures: []signature{sig}})
}

// verify returns the manifest in an envelope and who has signed it. One that is
// wrong in any way is [ErrInvalid], also where nobody would have to sign.
func verify(text []byte, kind string) (m manifest, signer PublicKey, err error) {
	wrong := func(format string, args ...any) (manifest, PublicKey, error) {
		return manifest{}, PublicKey{}, fmt.Errorf("%w: %s: %s", ErrInvalid, manifestFile, fmt.Sprintf(format, args...))
	}

	var e envelope
	if err := decode(text, &e); err != nil {
		return wrong("%v", err)
	}
	if e.PayloadType != payloadType || len(e.Signatures) != 1 {
		return wrong("it is of type %.100q with %d signatures, and must be %s with one", e.PayloadType, len(e.Signatures), payloadType)
	}

	signer, err = ParseKey(e.Signatures[0].KeyID)
	if err != nil {
		return wrong("%v", err)
	}
	if !ed25519.Verify(signer.key[:], encoded(e.Payload), e.Signatures[0].Sig) {
		return wrong("the signature of %s is wrong", signer)
	}

	if err := decode(e.Payload, &m); err != nil {
		return wrong("%v", err)
	}
	if m.Kind != kind || len(m.Files) > maxFiles {
		return wrong("it lists %d files of a %.20q, and must list those of a %s, at most %d", len(m.Files), m.Kind, kind, maxFiles)
	}
	return m, signer, nil
}

// decode decodes JSON of a checkpoint, whose text is bounded already.
func decode(text []byte, to any) error {
	if _, err := untrusted.CountValues(bytes.NewReader(text), maxValues); err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

// maxValues bounds the values in a JSON text: two bytes may decode to hundreds.
const maxValues = 8 * maxFiles

// find returns what the manifest says of a file.
func (m manifest) find(name string) (file, bool) {
	i := slices.IndexFunc(m.Files, func(f file) bool { return f.Name == name })
	if i < 0 {
		return file{}, false
	}
	return m.Files[i], true
}

// match compares the files that are there with those that were signed, in any order.
func (m manifest) match(found []file) error {
	signed := map[string]file{}
	for _, f := range m.Files {
		signed[f.Name] = f
	}
	for _, f := range found {
		if signed[f.Name] != f {
			return fmt.Errorf("%w: %.100q is not what was signed", ErrInvalid, f.Name)
		}
		delete(signed, f.Name)
	}
	for name := range signed {
		return fmt.Errorf("%w: %.100q was signed, and is missing", ErrInvalid, name)
	}
	return nil
}

// meter measures what is written through it, or read.
type meter struct {
	size int64
	hash hash.Hash
}

func newMeter() *meter { return &meter{hash: sha256.New()} }

func (m *meter) Write(p []byte) (int, error) {
	m.size += int64(len(p))
	return m.hash.Write(p)
}

// digestOf is the digest of a text.
func digestOf(text []byte) string {
	m := newMeter()
	_, _ = m.Write(text) // a hash never fails
	return m.digest()
}

func (m *meter) file(name string) file { return file{name, m.size, m.digest()} }

func (m *meter) digest() string { return hex.EncodeToString(m.hash.Sum(nil)) }

var _ io.Writer = (*meter)(nil)
