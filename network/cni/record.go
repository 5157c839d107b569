package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"crisp/runtime/durable"
)

const (
	recordVersion = 1
	recordSuffix  = ".json"
)

// record is what is noted before an ADD, so that the DEL can be made whatever
// has become of the configuration folder and of the daemon.
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

// records is the folder of them.
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
