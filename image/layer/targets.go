package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/image/store"
	"crisp/runtime/rootpath"
)

// Targets returns the tree of mount targets that containers stack on top of a
// layer, as a path below [Store.Dir], or "" if it has none.
func (s *Store) Targets(chain digest.Digest) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.targets[chain]; !ok {
		return ""
	}
	return filepath.Join(chain.Encoded(), targetsDir)
}

// AddTargets moves a tree of mount targets from its path below the temporary
// directory to its layer, with which it will be removed. It does nothing if the
// layer was removed or already has targets.
func (s *Store) AddTargets(chain digest.Digest, temp string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.layers[chain]; !ok {
		return nil
	}
	if _, ok := s.targets[chain]; ok {
		return nil
	}
	if err := os.Rename(filepath.Join(s.temp, temp), filepath.Join(s.root, chain.Encoded(), targetsDir)); err != nil {
		return fmt.Errorf("add mount targets: %w", err)
	}
	return s.noteTargets(chain)
}

// noteTargets adds the targets in a layer's directory to the store's state.
//
// Preconditions: mu is held, or the store is not open yet.
func (s *Store) noteTargets(chain digest.Digest) error {
	dir, err := os.OpenFile(filepath.Join(s.root, chain.Encoded(), targetsDir), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		return fmt.Errorf("examine mount targets: %w", err)
	}
	defer dir.Close()

	// Not cancellable: there are only a handful of files, made by crisp itself.
	got, err := rootpath.Measure(context.Background(), dir)
	if err != nil {
		return fmt.Errorf("examine mount targets: %w", err)
	}

	u := store.Usage{Bytes: got.Bytes, Inodes: got.Inodes}
	s.targets[chain] = u
	s.usage = s.usage.Add(u)
	return nil
}
