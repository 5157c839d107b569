package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

const (
	// keyFile is a node's key below the daemon's root: a PKCS #8 private key as PEM.
	keyFile = "checkpoint.key"
	keyType = "PRIVATE KEY"
	maxKey  = 4 << 10
)

// PublicKey says who has made a checkpoint. The zero value is nobody.
type PublicKey struct{ key [ed25519.PublicKeySize]byte }

// ParseKey reads what [PublicKey.String] writes. The error is [ErrInvalid].
func ParseKey(text string) (PublicKey, error) {
	var p PublicKey
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != len(p.key) || bytes.Equal(raw, p.key[:]) {
		return PublicKey{}, fmt.Errorf("%w: %.100q is no public key, which is %d bytes in base64", ErrInvalid, text, len(p.key))
	}
	copy(p.key[:], raw)
	return p, nil
}

// String is the key in base64, "" for nobody.
func (p PublicKey) String() string {
	if p == (PublicKey{}) {
		return ""
	}
	return base64.StdEncoding.EncodeToString(p.key[:])
}

// Key is a node's key, with which it signs its checkpoints.
type Key struct{ private ed25519.PrivateKey }

// OpenKey returns the key of the daemon whose root directory this is. On first use
// it is made; of several that try at once all get the same. Only root can read it.
func OpenKey(root string) (*Key, error) {
	path := filepath.Join(root, keyFile)
	k, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(path); err == nil {
			k, err = readKey(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the key that signs checkpoints, %s: %w", path, err)
	}
	return k, nil
}

// Public is the key by which others know the checkpoints of this one.
func (k *Key) Public() PublicKey {
	var p PublicKey
	copy(p.key[:], k.private[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
	return p
}

func readKey(path string) (*Key, error) {
	text, err := rootpath.ReadNodeFile(path, maxKey)
	if err != nil {
		return nil, err
	}

	block, rest := pem.Decode(text)
	if block == nil || block.Type != keyType || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is no private key as PEM; move it away to get a new one")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w; move it away to get a new one", err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it is a %T, not one of Ed25519; move it away to get a new one", parsed)
	}
	return &Key{private}, nil
}

// makeKey makes a key unless there is one.
func makeKey(path string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}

	f, err := os.OpenFile(filepath.Dir(path), os.O_WRONLY|unix.O_TMPFILE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pem.Encode(f, &pem.Block{Type: keyType, Bytes: raw}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := link(f, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// Entries of a policy that are no keys.
const (
	ThisNode = "this-node"
	Anybody  = "any"
)

// Policy says whose checkpoints are restored. The zero value is nobody's.
type Policy struct {
	anybody bool
	keys    []PublicKey
}

// ParsePolicy reads a list of public keys as [PublicKey.String] writes them, with
// [ThisNode] for own. A list of [Anybody] alone also accepts checkpoints without
// a signature; an empty list accepts none. The error is [ErrInvalid].
func ParsePolicy(list []string, own PublicKey) (Policy, error) {
	if slices.Equal(list, []string{Anybody}) {
		return Policy{anybody: true}, nil
	}

	var p Policy
	for _, text := range list {
		switch text {
		case Anybody:
			return Policy{}, fmt.Errorf("%w: %q with others, which it includes; give it alone", ErrInvalid, Anybody)
		case ThisNode:
			p.keys = append(p.keys, own)
		default:
			key, err := ParseKey(text)
			if err != nil {
				return Policy{}, fmt.Errorf("%w; others are %q and %q", err, ThisNode, Anybody)
			}
			p.keys = append(p.keys, key)
		}
	}
	return p, nil
}

// Check reports whether a checkpoint of this signer may be restored; a checkpoint
// without a signature has the zero one. The error is [ErrUntrusted].
func (p Policy) Check(signer PublicKey) error {
	switch {
	case p.anybody:
		return nil
	case signer == PublicKey{}:
		return fmt.Errorf("%w: it is not signed, and restore_from does not have %q", ErrUntrusted, Anybody)
	case !p.Trusts(signer):
		return fmt.Errorf("%w: it is signed by %s, which restore_from does not have", ErrUntrusted, signer)
	}
	return nil
}

// Trusts reports whether the policy names this signer: [Anybody] is not trusted.
func (p Policy) Trusts(signer PublicKey) bool {
	return signer != PublicKey{} && slices.Contains(p.keys, signer)
}
