package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"crisp/runtime/durable"
)

const (
	recordVersion = 1
	recordSuffix  = ".json"
	// lockInterval is how often a lock is tried.
	lockInterval = 10 * time.Millisecond
)

// record is written before an ADD, so that a DEL is possible whatever happens to
// the configuration directory and to the daemon.
//
// It is replaced atomically but not synced: after a power cut, which ends the
// namespace too, the current configuration is good enough for a DEL.
type record struct {
	Version      int             `json:"version"`
	ID           string          `json:"id"`
	NetNS        string          `json:"netns"`
	IfName       string          `json:"ifName"`
	Args         [][2]string     `json:"args"`
	Capabilities map[string]any  `json:"capabilities"`
	Config       json.RawMessage `json:"config"`
	// Served are the types of the chain that were served in this process when the pod
	// was attached, and not by programs. Only records of old releases have null.
	Served []string `json:"served"`
}

// records is the directory of all records.
//
// The plugins of an ADD inherit a descriptor of the record's file that holds a
// lock. When the daemon is killed they keep running, and the next daemon waits for
// the lock: a DEL that overtook them would leak what they do after it.
type records struct{ dir string }

func (r records) path(id string) (string, error) {
	if err := utils.ValidateContainerID(id); err != nil {
		return "", err
	}
	return filepath.Join(r.dir, id+recordSuffix), nil
}

func (r records) save(rec *record) error {
	path, err := r.path(rec.ID)
	if err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode attachment: %w", err)
	}
	if err := durable.ReplaceFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write attachment: %w", err)
	}
	return nil
}

// lock locks the file of a record. The lock is released when the returned file
// and all descriptors that were inherited from it are closed.
func (r records) lock(id string) (*os.File, error) {
	f, err := r.open(id)
	if err != nil {
		return nil, fmt.Errorf("lock attachment: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock attachment: %w", err), f.Close())
	}
	return f, nil
}

// await waits until no process holds the lock of a record, up to limit: a plugin
// may hang, or have started a process that keeps running.
func (r records) await(ctx context.Context, id string, limit time.Duration) error {
	f, err := r.open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for plugins of attachment: %w", err)
	}
	defer f.Close()

	end := time.After(limit)
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for plugins of attachment: %w", context.Cause(ctx))
		case <-time.After(lockInterval):
		}
	}

	return nil
}

func (r records) open(id string) (*os.File, error) {
	path, err := r.path(id)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// load returns nil if there is no record, or an unreadable one, such as a power cut
// may leave.
func (r records) load(id string) (*record, error) {
	path, err := r.path(id)
	if err != nil {
		return nil, err
	}

	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read attachment: %w", err)
	}

	rec := &record{}
	if json.Unmarshal(data, rec) != nil || rec.Version != recordVersion || rec.ID != id {
		return nil, nil
	}
	return rec, nil
}

func (r records) remove(id string) error {
	path, err := r.path(id)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove attachment: %w", err)
	}
	return nil
}

// list returns the IDs that have a record.
func (r records) list() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if id, ok := strings.CutSuffix(entry.Name(), recordSuffix); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
