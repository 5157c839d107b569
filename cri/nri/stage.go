package nri

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/nri/pkg/api"

	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

// maxConfig is the size of a plugin's configuration, which a message has room for.
const maxConfig = maxMessage / 2

// stage is a directory of the daemon's from which the library starts plugins: it gives up
// all of them for one that has no proper name or no readable configuration, and waits for
// files that are none.
type stage struct{ dir string }

func (s stage) plugins() string { return filepath.Join(s.dir, "plugins") }
func (s stage) configs() string { return filepath.Join(s.dir, "conf.d") }

// fill makes the directory anew, with links to the plugins of a directory that can be
// started, and their configurations. skipped are the reasons why others cannot.
func (s stage) fill(plugins, configs string) (skipped []error, err error) {
	if !filepath.IsAbs(s.dir) { // what is there is removed
		return nil, fmt.Errorf("make a directory for plugins: path %q is not absolute", s.dir)
	}
	for _, dir := range []string{s.plugins(), s.configs()} {
		if err := empty(dir); err != nil {
			return nil, fmt.Errorf("make a directory for plugins: %w", err)
		}
	}
	entries, err := os.ReadDir(plugins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for plugins: %w", err)
	}

	for _, e := range entries {
		path := filepath.Join(plugins, e.Name())
		info, err := os.Stat(path)
		if err == nil && (info.IsDir() || info.Mode().Perm()&0o111 == 0) {
			continue // it is no plugin, to other runtimes neither
		}
		if err == nil {
			err = s.add(path, info, configs)
		}
		if err != nil {
			skipped = append(skipped, fmt.Errorf("plugin %s: %w", path, err))
		}
	}
	return skipped, nil
}

// empty makes a directory without files.
func empty(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s stage) add(path string, info fs.FileInfo, configs string) error {
	name := filepath.Base(path)
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no regular file", ErrFile)
	}
	_, base, err := api.ParsePluginName(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}

	// The configuration of this instance, or else that of all instances.
	for _, conf := range []string{name, base} {
		data, err := rootpath.ReadNodeFile(filepath.Join(configs, conf+".conf"), maxConfig)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = durable.WriteFile(filepath.Join(s.configs(), name+".conf"), data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("%w: its configuration %s.conf: %w", ErrFile, conf, err)
		}
		break
	}
	return os.Symlink(path, filepath.Join(s.plugins(), name))
}
