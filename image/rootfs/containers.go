package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// UpperName is the name of the upper directory that [MakeUpper] makes.
const UpperName = upperDir

const (
	upperDir   = "upper"
	workDir    = "work"
	layersLink = "layers"
	heldPrefix = "held-"
	// noLayers is the link's text for an image without layers.
	noLayers = "none"

	dirPerm = 0o700
)

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Owner is the owner of a file on the host.
type Owner struct{ UID, GID int }

// Containers keeps the directories that containers write to. A single process
// owns it.
type Containers struct {
	root, temp string

	mu  sync.Mutex
	all map[string]*uses
}

// uses are the images that one container needs.
type uses struct {
	// chain is the top layer of the root file system's image, "" for an image
	// without layers; prepared is false until there is one.
	chain    digest.Digest
	prepared bool
	held     []digest.Digest
}

// OpenContainers reads the directory root; temp is a directory on the same file
// system for what is being removed.
func OpenContainers(root, temp string) (*Containers, error) {
	c := &Containers{root: root, temp: temp, all: map[string]*uses{}}
	if err := os.MkdirAll(root, dirPerm); err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}

	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}

	for _, e := range entries {
		if !e.IsDir() || !idPattern.MatchString(e.Name()) {
			continue
		}
		if c.all[e.Name()], err = readUses(filepath.Join(root, e.Name())); err != nil {
			return nil, fmt.Errorf("open containers: %w", err)
		}
	}

	return c, nil
}

func readUses(dir string) (*uses, error) {
	u := &uses{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	for _, e := range entries {
		isLayers := e.Name() == layersLink
		if e.Type() != fs.ModeSymlink || !isLayers && !strings.HasPrefix(e.Name(), heldPrefix) {
			continue
		}

		text, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}

		chain := digest.Digest(text)
		if text == noLayers {
			chain = ""
		} else if chain.Validate() != nil {
			continue
		}

		if isLayers {
			u.chain, u.prepared = chain, true
		} else {
			u.held = append(u.held, chain)
		}
	}

	return u, nil
}

func linkText(chain digest.Digest) string {
	if chain == "" {
		return noLayers
	}
	return chain.String()
}

// Prepare makes the directories of container id on top of the layers chain. The
// upper directory gets the attributes of root, the root of the layers, with its
// owner mapped by translate from the image's users to the host's. It is
// idempotent.
func (c *Containers) Prepare(id string, chain digest.Digest, root unix.Stat_t, translate func(uid, gid uint32) Owner) error {
	if err := c.hold(id, layersLink, chain); err != nil {
		return fmt.Errorf("prepare root file system of %s: %w", id, err)
	}

	dir := filepath.Join(c.root, id)
	own := translate(root.Uid, root.Gid)
	for _, sub := range []struct {
		name string
		own  Owner
		perm uint32
	}{
		{upperDir, own, root.Mode & 0o7777},
		{workDir, translate(0, 0), dirPerm},
	} {
		if err := makeDir(filepath.Join(dir, sub.name), sub.own, sub.perm); err != nil {
			return fmt.Errorf("prepare root file system of %s: %w", id, err)
		}
	}

	return nil
}

// MakeUpper makes the directories for an [Overlay] to write to in dir. The upper
// directory gets the attributes of root, the root of the layers.
func MakeUpper(dir string, root unix.Stat_t) error {
	own := Owner{UID: int(root.Uid), GID: int(root.Gid)}
	if err := makeDir(filepath.Join(dir, upperDir), own, root.Mode&0o7777); err != nil {
		return err
	}
	return makeDir(filepath.Join(dir, workDir), Owner{}, dirPerm)
}

func makeDir(path string, own Owner, perm uint32) error {
	err := os.Mkdir(path, dirPerm)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}

	if own != (Owner{}) {
		if err := os.Lchown(path, own.UID, own.GID); err != nil {
			return err
		}
	}

	if perm == dirPerm {
		return nil
	}
	return unix.Chmod(path, perm)
}

// Hold keeps the layers chain for container id until it is discarded, for images
// that it uses in addition to its own.
func (c *Containers) Hold(id string, chain digest.Digest) error {
	c.mu.Lock()
	u := c.all[id]
	known := u != nil && slices.Contains(u.held, chain)
	n := 0
	if u != nil {
		n = len(u.held)
	}
	c.mu.Unlock()

	if known {
		return nil
	}

	if err := c.hold(id, fmt.Sprintf("%s%d", heldPrefix, n), chain); err != nil {
		return fmt.Errorf("hold image for %s: %w", id, err)
	}
	return nil
}

// hold makes the link name of container id, unless it exists with the same text.
func (c *Containers) hold(id, name string, chain digest.Digest) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%w: %q", ErrInvalidID, id)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	dir := filepath.Join(c.root, id)
	if err := os.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}

	link := filepath.Join(dir, name)
	err := os.Symlink(linkText(chain), link)
	if errors.Is(err, fs.ErrExist) {
		if text, rerr := os.Readlink(link); rerr != nil || text != linkText(chain) {
			return errors.Join(err, rerr)
		}
		err = nil
	}
	if err != nil {
		return err
	}

	u := c.all[id]
	if u == nil {
		u = &uses{}
		c.all[id] = u
	}

	if name == layersLink {
		u.chain, u.prepared = chain, true
	} else if !slices.Contains(u.held, chain) {
		u.held = append(u.held, chain)
	}

	return nil
}

// Chain returns the layers of container id.
func (c *Containers) Chain(id string) (digest.Digest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.all[id]
	if u == nil || !u.prepared {
		return "", fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return u.chain, nil
}

// Open opens the directory of container id with a fresh work directory: overlayfs
// refuses one that was used by a volatile mount.
func (c *Containers) Open(ctx context.Context, id string) (*os.File, error) {
	dir, err := os.Open(filepath.Join(c.root, id))
	if err != nil {
		return nil, fmt.Errorf("open root file system of %s: %w", id, err)
	}

	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), filepath.Join(workDir, workDir), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = renewWork(ctx, dir)
	} else if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("open root file system of %s: %w", id, err)
	}

	return dir, nil
}

func renewWork(ctx context.Context, dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), workDir, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := rootpath.RemoveAll(ctx, dir, workDir); err != nil {
		return err
	}
	if err := unix.Mkdirat(int(dir.Fd()), workDir, dirPerm); err != nil {
		return err
	}
	return unix.Fchownat(int(dir.Fd()), workDir, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

// UpperDir returns the directory that holds what container id wrote.
func (c *Containers) UpperDir(id string) string { return filepath.Join(c.root, id, upperDir) }

// IDs lists the containers that have a directory.
func (c *Containers) IDs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]string, 0, len(c.all))
	for id := range c.all {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// InUse lists the layers that containers use, each the top of its chain.
func (c *Containers) InUse() []digest.Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var chains []digest.Digest
	for _, u := range c.all {
		chains = append(chains, u.chains()...)
	}
	return chains
}

// Chains lists the layers that container id uses, each the top of its chain.
func (c *Containers) Chains(id string) []digest.Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.all[id]
	if u == nil {
		return nil
	}
	return u.chains()
}

func (u *uses) chains() []digest.Digest {
	if !u.prepared {
		return u.held
	}
	return append([]digest.Digest{u.chain}, u.held...)
}

// Discard moves the directory of container id to the temporary directory, where
// the caller removes it under the returned name: "" if there is none.
func (c *Containers) Discard(id string) (string, error) {
	if !idPattern.MatchString(id) {
		return "", nil
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	gone := "gone-" + id
	err := os.Rename(filepath.Join(c.root, id), filepath.Join(c.temp, gone))
	if errors.Is(err, fs.ErrNotExist) {
		delete(c.all, id)
		return "", nil
	}
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		// An earlier container of that name has not been removed completely yet.
		var dir string
		if dir, err = os.MkdirTemp(c.temp, "gone-*"); err == nil {
			gone = filepath.Base(dir)
			err = os.Rename(filepath.Join(c.root, id), filepath.Join(dir, upperDir))
		}
	}
	if err != nil {
		return "", fmt.Errorf("discard root file system of %s: %w", id, err)
	}

	delete(c.all, id)
	return gone, nil
}
