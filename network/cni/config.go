package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"

	"crisp/runtime/rootpath"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// Config is a network configuration: a named chain of plugins.
type Config struct {
	// File is the path from which the configuration was read.
	File string

	list *libcni.NetworkConfigList
}

// Load reads the configuration in a directory: its first file, in the order of
// names, that ends in .conf, .conflist or .json. An invalid file is an error and
// not skipped, since the next one may describe a different network.
func Load(dir string) (*Config, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read network configuration: %w", err)
	}

	for _, entry := range entries {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(entry.Name())) {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			continue
		}

		return LoadFile(file)
	}

	return nil, fmt.Errorf("%w in %s", ErrNoConfig, dir)
}

// LoadFile reads one configuration.
func LoadFile(file string) (*Config, error) {
	list, err := loadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalidConfig, file, err)
	}
	return &Config{File: file, list: list}, nil
}

// Name returns the name of the network.
func (c *Config) Name() string { return c.list.Name }

// Bytes returns the configuration as one list, plugins included.
func (c *Config) Bytes() []byte { return slices.Clone(c.list.Bytes) }

// Plugins returns the configurations of the plugins of a type in the chain, as they
// would receive them without a pod.
func (c *Config) Plugins(kind string) ([][]byte, error) {
	var all [][]byte
	for _, plugin := range c.list.Plugins {
		if plugin.Network.Type != kind {
			continue
		}
		full, err := configure(c.list, plugin, nil, &libcni.RuntimeConf{})
		if err != nil {
			return nil, err
		}
		all = append(all, full)
	}
	return all, nil
}

// Declares reports whether a plugin of the chain declares a capability.
func (c *Config) Declares(capability string) bool {
	for _, plugin := range c.list.Plugins {
		if plugin.Network.Capabilities[capability] {
			return true
		}
	}
	return false
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	data, err := rootpath.ReadNodeFile(path, maxConfig)
	if err != nil {
		return nil, err
	}

	list, err := parse(data)
	if err != nil {
		return nil, err
	}

	if !list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), list.Name)
		if err != nil {
			return nil, err
		}
		if err := appendPlugins(list, more); err != nil {
			return nil, err
		}
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}

	return list, nil
}

// parse parses a list of plugins, or a single plugin as a list of one.
func parse(data []byte) (*libcni.NetworkConfigList, error) {
	var top struct {
		Name       string `json:"name"`
		Type       string `json:"type"`
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(data, &top); err != nil {
		return nil, err
	}

	if err := utils.ValidateNetworkName(top.Name); err != nil {
		return nil, err
	}
	if top.Type != "" {
		var err error
		data, err = json.Marshal(map[string]any{
			"name": top.Name, "cniVersion": top.CNIVersion,
			"loadOnlyInlinedPlugins": true, "plugins": []json.RawMessage{data},
		})
		if err != nil {
			return nil, err
		}
	}

	return libcni.NetworkConfFromBytes(data)
}

// appendPlugins adds plugins that are configured in separate files. It adds them
// to the list's text too, which is recorded for a later DEL.
func appendPlugins(list *libcni.NetworkConfigList, more []*libcni.PluginConfig) error {
	if len(more) == 0 {
		return nil
	}
	list.Plugins = append(list.Plugins, more...)
	var text map[string]any
	if err := json.Unmarshal(list.Bytes, &text); err != nil {
		return err
	}

	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, plugin := range list.Plugins {
		plugins[i] = plugin.Bytes
	}

	text["plugins"] = plugins
	text["loadOnlyInlinedPlugins"] = true
	var err error
	list.Bytes, err = json.Marshal(text)
	return err
}
