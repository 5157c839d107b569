package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/image/rootfs"
	"crisp/image/store"
	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

const (
	treeDir    = "fs"
	targetsDir = "targets"
	recordFile = "layer.json"
	// emptyDir is a layer without content, for images without layers and where
	// overlayfs requires a second one.
	emptyDir = "empty"

	recordVersion = 1
	maxRecord     = 64 << 10

	dirPerm  = 0o700
	filePerm = 0o600
)

// Record describes an unpacked layer. A layer without a record is not complete.
type Record struct {
	Version int           `json:"version"`
	ChainID digest.Digest `json:"chainID"`
	DiffID  digest.Digest `json:"diffID"`
	// Parent is the chain ID of the layers below, empty for a base layer.
	Parent digest.Digest `json:"parent,omitempty"`
	// Opaque means that the layer hides everything below it.
	Opaque bool `json:"opaque,omitempty"`
	// Unsynced is the ID of the boot in which the layer was written, until it is
	// known to be on disk. In another boot it may be torn.
	Unsynced string `json:"unsynced,omitempty"`
	// Bytes and Inodes are the disk usage of the tree.
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// Usage returns the disk usage of the layer.
func (r Record) Usage() store.Usage { return store.Usage{Bytes: r.Bytes, Inodes: r.Inodes} }

// Store keeps unpacked layers. A single process owns it.
type Store struct {
	root, temp, boot string
	dir              *os.File
	// oneString: see [rootfs.Overlay].
	oneString bool

	mu      sync.Mutex
	layers  map[digest.Digest]Record
	targets map[digest.Digest]store.Usage // the layers that have mount targets
	usage   store.Usage
}

// Open opens the layers in the directory root; temp is a directory on the same
// file system for layers that are being unpacked or removed. boot is the ID of
// this boot of the machine.
func Open(root, temp, boot string) (*Store, error) {
	s := &Store{root: root, temp: temp, boot: boot, layers: map[digest.Digest]Record{}, targets: map[digest.Digest]store.Usage{}}
	if err := os.MkdirAll(filepath.Join(root, emptyDir, treeDir), dirPerm); err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}

	if err := os.Chmod(filepath.Join(root, emptyDir, treeDir), 0o755); err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}

	appends, err := rootfs.AppendsLayers()
	if err != nil {
		klog.V(2).InfoS("Layers are passed to the kernel in the form that all kernels take", "err", err)
	}
	s.dir, s.oneString = dir, !appends
	if err := s.scan(); err != nil {
		dir.Close()
		return nil, fmt.Errorf("open layers: %w", err)
	}
	return s, nil
}

// Close releases the directory.
func (s *Store) Close() error { return s.dir.Close() }

// scan lists the complete layers and moves anything else out of the way.
func (s *Store) scan() error {
	names, err := s.dir.Readdirnames(-1)
	if err != nil {
		return err
	}

	for _, name := range names {
		if name == emptyDir {
			continue
		}
		rec, err := readRecord(s.dir, name)
		if err != nil || rec.Unsynced != "" && rec.Unsynced != s.boot {
			if err := s.setAside(name); err != nil {
				return err
			}
			continue
		}
		if rec.Unsynced != "" {
			// The process may have been killed in MarkSynced.
			if err := durable.RemoveTemps(filepath.Join(s.root, name)); err != nil {
				return err
			}
		}

		s.layers[rec.ChainID] = rec
		s.usage = s.usage.Add(rec.Usage())
		if err := s.noteTargets(rec.ChainID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}

	return nil
}

// setAside moves what is not a complete layer to the temporary directory.
func (s *Store) setAside(name string) error {
	damaged, err := os.MkdirTemp(s.temp, "damaged-*")
	if err != nil {
		return err
	}
	return os.Rename(filepath.Join(s.root, name), filepath.Join(damaged, name))
}

// readRecord reads and checks the record of the layer in directory name.
func readRecord(dir *os.File, name string) (Record, error) {
	var rec Record
	data, err := rootpath.ReadFile(dir, filepath.Join(name, recordFile), maxRecord)
	if err != nil {
		return rec, err
	}

	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, err
	}
	if rec.Version != recordVersion || rec.ChainID.Validate() != nil || rec.ChainID.Encoded() != name {
		return rec, fmt.Errorf("%w: record of %s", ErrInvalid, name)
	}

	tree, err := rootpath.Open(dir, filepath.Join(name, treeDir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return rec, err
	}
	return rec, tree.Close()
}

// Usage returns the disk usage of all layers.
func (s *Store) Usage() store.Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage
}

// Get returns the record of a layer.
func (s *Store) Get(chain digest.Digest) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.layers[chain]
	return rec, ok
}

// ChainIDs lists all layers.
func (s *Store) ChainIDs() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]digest.Digest, 0, len(s.layers))
	for id := range s.layers {
		list = append(list, id)
	}
	return list
}

// Dir returns the directory of all layers, which is open until the store is
// closed.
func (s *Store) Dir() *os.File { return s.dir }

// Trees lists the layers from chain downwards, the topmost first, as paths
// below [Store.Dir], down to the first opaque one. An empty chain ID, of an image
// without layers, has one empty tree.
func (s *Store) Trees(chain digest.Digest) ([]string, error) {
	if chain == "" {
		return []string{EmptyTree()}, nil
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	var trees []string
	for chain != "" {
		rec, ok := s.layers[chain]
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, chain)
		}

		trees = append(trees, filepath.Join(chain.Encoded(), treeDir))
		if rec.Opaque {
			break
		}
		chain = rec.Parent
	}

	return trees, nil
}

// Overlay returns a read-only stack of trees, the topmost first, given as paths
// below [Store.Dir].
func (s *Store) Overlay(trees []string) rootfs.Overlay {
	return rootfs.Overlay{Layers: s.dir, Lower: trees, Empty: EmptyTree(), OneString: s.oneString}
}

// EmptyTree returns the path below [Store.Dir] of an empty tree.
func EmptyTree() string { return filepath.Join(emptyDir, treeDir) }

// Chain lists the chain IDs from chain downwards, the topmost first.
func (s *Store) Chain(chain digest.Digest) []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []digest.Digest
	for chain != "" && !slices.Contains(list, chain) {
		list = append(list, chain)
		chain = s.layers[chain].Parent
	}
	return list
}

// Detach moves a layer from the store to the temporary directory and returns its
// name there, under which the caller removes it: "" if there is no such layer.
func (s *Store) Detach(chain digest.Digest) (string, error) {
	if err := chain.Validate(); err != nil {
		return "", fmt.Errorf("remove layer: %w", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.layers[chain]
	if !ok {
		return "", nil
	}

	gone, err := os.MkdirTemp(s.temp, "gone-*")
	if err != nil {
		return "", fmt.Errorf("remove layer: %w", err)
	}

	if err := os.Rename(filepath.Join(s.root, chain.Encoded()), filepath.Join(gone, treeDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return filepath.Base(gone), fmt.Errorf("remove layer: %w", err)
	}
	u := rec.Usage().Add(s.targets[chain])
	delete(s.layers, chain)
	delete(s.targets, chain)
	s.usage.Bytes -= min(u.Bytes, s.usage.Bytes)
	s.usage.Inodes -= min(u.Inodes, s.usage.Inodes)

	return filepath.Base(gone), nil
}

// Unsynced lists the layers that are not known to be on disk.
func (s *Store) Unsynced() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []digest.Digest
	for id, rec := range s.layers {
		if rec.Unsynced != "" {
			list = append(list, id)
		}
	}
	return list
}

// MarkSynced records that a layer is on disk; the record itself is durable after
// the next sync. A layer that was removed is ignored.
func (s *Store) MarkSynced(chain digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.layers[chain]
	if !ok || rec.Unsynced == "" {
		return nil
	}

	rec.Unsynced = ""
	data, err := json.Marshal(rec)
	if err == nil {
		err = durable.ReplaceFile(filepath.Join(s.root, chain.Encoded(), recordFile), data, filePerm)
	}
	if err != nil {
		return fmt.Errorf("record layer %s: %w", chain, err)
	}

	s.layers[chain] = rec
	return nil
}

// ChainIDs computes the chain IDs of layers from their diff IDs, the lowest
// first, as the OCI image specification defines them.
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	chain := make([]digest.Digest, len(diffIDs))
	for i, d := range diffIDs {
		chain[i] = d
		if i > 0 {
			chain[i] = digest.FromString(chain[i-1].String() + " " + d.String())
		}
	}
	return chain
}

// Stage is a layer that is being unpacked: call Unpack, then, once its parent is
// published, Publish. Discard drops it at any point and does nothing after
// Publish.
type Stage struct {
	store *Store
	name  string
	rec   Record
	root  *os.File
	// implied are directories whose attributes come from the layers below.
	implied []string
	done    bool
}

// Stage begins the layer chain with content diff on top of parent. The stage has
// to be discarded even after an error.
func (s *Store) Stage(chain, diff, parent digest.Digest) (*Stage, error) {
	if err := chain.Validate(); err != nil {
		return nil, fmt.Errorf("stage layer: %w", err)
	}
	dir, err := os.MkdirTemp(s.temp, "layer-*")
	if err != nil {
		return nil, fmt.Errorf("stage layer: %w", err)
	}

	st := &Stage{
		store: s, name: filepath.Base(dir),
		rec: Record{Version: recordVersion, ChainID: chain, DiffID: diff, Parent: parent, Unsynced: s.boot},
	}
	if err := st.open(filepath.Join(dir, treeDir)); err != nil {
		return st, fmt.Errorf("stage layer: %w", err)
	}

	return st, nil
}

// open makes and opens the directory for the layer's files.
func (st *Stage) open(tree string) error {
	err := os.Mkdir(tree, dirPerm)
	if err == nil {
		err = os.Chmod(tree, impliedPerm)
	}
	if err == nil {
		st.root, err = os.Open(tree)
	}
	return err
}

// Unpack fills the stage from a compressed layer and verifies its content.
func (st *Stage) Unpack(ctx context.Context, open Source, limits Limits) error {
	u, diff, err := unpack(ctx, st.root, open, st.rec.Parent == "", limits)
	if err != nil {
		return err
	}
	if diff != st.rec.DiffID {
		return fmt.Errorf("%w: content has digest %s, the image's configuration says %s", ErrInvalid, diff, st.rec.DiffID)
	}

	st.rec.Opaque = u.opaque
	st.rec.Bytes, st.rec.Inodes = u.usage.Bytes, u.usage.Inodes
	for name := range u.implied {
		st.implied = append(st.implied, name)
	}
	return nil
}

// complete sets the attributes of directories that the archive does not list, and
// writes the record.
func (st *Stage) complete(ctx context.Context) error {
	if st.rec.Parent != "" {
		if err := st.inherit(ctx); err != nil {
			return fmt.Errorf("complete layer: %w", err)
		}
	}
	data, err := json.Marshal(st.rec)
	if err != nil {
		return fmt.Errorf("complete layer: %w", err)
	}
	if err := os.WriteFile(filepath.Join(st.store.temp, st.name, recordFile), data, filePerm); err != nil {
		return fmt.Errorf("complete layer: %w", err)
	}
	return nil
}

// Publish completes the layer and moves it into the store.
func (st *Stage) Publish(ctx context.Context) error {
	if err := st.complete(ctx); err != nil {
		return err
	}
	s := st.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.layers[st.rec.ChainID]; ok {
		return nil
	}
	return st.publishLocked()
}

func (st *Stage) publishLocked() error {
	s := st.store
	err := os.Rename(filepath.Join(s.temp, st.name), filepath.Join(s.root, st.rec.ChainID.Encoded()))
	if err != nil {
		return fmt.Errorf("publish layer: %w", err)
	}
	st.done = true
	s.layers[st.rec.ChainID] = st.rec
	s.usage = s.usage.Add(st.rec.Usage())
	return st.root.Close()
}

// Discard drops a stage that is not published and returns its name in the
// temporary directory, under which the caller removes it: "" if there is none.
func (st *Stage) Discard() string {
	if st == nil || st.done {
		return ""
	}
	st.done = true
	if st.root != nil {
		st.root.Close()
	}
	return st.name
}
