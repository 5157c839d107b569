package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

const (
	// PodFile is what a pod's checkpoint has besides an archive for each container:
	// their configurations.
	PodFile = "pod.dump"
	// PodManifest is what is signed of it: that file, and the digest of the manifest of each
	// archive.
	PodManifest = manifestFile
	// maxPod bounds [PodFile] in bytes: 100 containers with all their annotations.
	maxPod = 64 << 20
)

// SignPod signs a pod's checkpoint in the directory dir: dump, which is the content
// of [PodFile], and the archives by their names, as digests that [Stage.Write] has
// returned: what an archive's own manifest says of its files is not signed twice. It writes both files, dump last.
func (k *Key) SignPod(dir string, dump []byte, archives map[string]string) error {
	measured := newMeter()
	_, _ = measured.Write(dump) // a hash never fails
	m := manifest{Kind: kindPod, Files: []file{measured.file(PodFile)}}
	for name, digest := range archives {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("sign checkpoint of a pod: %w", err)
		}
		m.Files = append(m.Files, file{name, info.Size(), digest})
	}

	text, err := k.sign(m)
	if err != nil {
		return fmt.Errorf("sign checkpoint of a pod: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, manifestFile), text, 0o600); err != nil {
		return fmt.Errorf("sign checkpoint of a pod: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, PodFile), dump, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", PodFile, err)
	}
	return nil
}

// Pod is a pod's checkpoint.
type Pod struct {
	// Dump is the content of [PodFile].
	Dump []byte
	// Signer is who made it, the zero value if it is not signed.
	Signer PublicKey

	dir      *os.File
	signed   manifest
	isSigned bool
}

// OpenPod reads a pod's checkpoint in an open directory, which the caller keeps open
// and nobody has to trust: no link in it is followed. The errors are [ErrInvalid],
// [ErrTooLarge] and [ErrUntrusted].
func OpenPod(dir *os.File, from Policy) (*Pod, error) {
	p := &Pod{dir: dir}
	if err := p.read(from); err != nil {
		return nil, fmt.Errorf("read checkpoint of a pod: %w", err)
	}
	return p, nil
}

func (p *Pod) read(from Policy) (err error) {
	p.Dump, err = readSmall(p.dir, PodFile, maxPod)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no %s", ErrInvalid, PodFile)
	}
	if err != nil {
		return err
	}

	text, err := readSmall(p.dir, manifestFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return from.Check(PublicKey{})
	}
	if err != nil {
		return err
	}

	if p.signed, p.Signer, err = verify(text, kindPod); err != nil {
		return err
	}
	p.isSigned = true
	m := newMeter()
	if _, err := bytes.NewReader(p.Dump).WriteTo(m); err != nil {
		return err
	}
	if f, ok := p.signed.find(PodFile); !ok || f != m.file(PodFile) {
		return fmt.Errorf("%w: %s is not what was signed", ErrInvalid, PodFile)
	}
	return from.Check(p.Signer)
}

func readSmall(dir *os.File, name string, limit int64) ([]byte, error) {
	text, err := rootpath.ReadFile(dir, name, limit)
	return text, marked(err)
}

// marked marks what is wrong with a file that others made.
func marked(err error) error {
	switch {
	case errors.Is(err, rootpath.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, rootpath.ErrNotRegular):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

// Archive opens the archive of a container, with a name of the dump, and returns the
// digest that [Terms] must have. One that was not signed with the dump is [ErrInvalid].
// Whether it is the right container's its [Config] says.
func (p *Pod) Archive(name string) (_ *os.File, digest string, err error) {
	if name == PodFile || name == manifestFile || strings.Contains(name, "/") {
		return nil, "", fmt.Errorf("%w: %.100q is no name of an archive", ErrInvalid, name)
	}
	signed, ok := p.signed.find(name)
	if p.isSigned && !ok {
		return nil, "", fmt.Errorf("%w: archive %.100q was not signed", ErrInvalid, name)
	}
	f, err := rootpath.OpenRegular(p.dir, name, math.MaxInt64)
	if err != nil {
		return nil, "", fmt.Errorf("open checkpoint of a container: %w", marked(err))
	}
	return f, signed.SHA256, nil
}
