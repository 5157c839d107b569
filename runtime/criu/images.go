package criu

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
)

// MountKeys lists the keys of the external mounts in images.
func MountKeys(images string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(images, "mountpoints-*.img"))
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		img, err := crit.New(f, nil, "", false, true).Decode(&mnt.MntEntry{})
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		for _, e := range img.Entries {
			if m, ok := e.Message.(*mnt.MntEntry); ok && m.GetExtKey() != "" {
				keys = append(keys, m.GetExtKey())
			}
		}
	}
	return keys, nil
}
