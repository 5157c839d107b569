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
	// lockPause is how often a lock is tried.
	lockPause = 10 * time.Millisecond
)

// record is what is noted before an ADD, so that the DEL can be made whatever
// has become of the configuration directory and of the daemon.
//
// It is replaced atomically but not forced to disk: after a power cut, which
// ends the namespace too, the current configuration serves for a DEL.
type record struct {
	Version      int             `json:"version"`
	ID           string          `json:"id"`
	NetNS        string          `json:"netns"`
	IfName       string          `json:"ifName"`
	Args         [][2]string     `json:"args"`
	Capabilities map[string]any  `json:"capabilities"`
	Config       json.RawMessage `json:"config"`
}

// records is the directory of them.
//
// The plugins of an ADD inherit a descriptor of the record's file that holds a
// lock. When the daemon is killed they go on, and the daemon that follows can
// tell: a DEL that overtook them would leave what they do after it.
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

// lock locks the file of a record just saved. The lock lasts until the file
// returned and all copies of it in other processes are closed.
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

// await waits until nobody holds the lock of a record, but not for ever: a
// plugin may hang, or have started something that stays.
func (r records) await(ctx context.Context, id string, limit time.Duration) error {
	f, err := r.open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("await attachment: %w", err)
	}
	defer f.Close()

	end := time.After(limit)
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("await attachment: %w", context.Cause(ctx))
		case <-time.After(lockPause):
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

// load returns nil when there is no record, or none that can be read: what a
// power cut has left of it tells nothing.
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

// list returns the ids that have a record.
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
