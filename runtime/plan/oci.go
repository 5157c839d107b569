package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// FromOCI returns the plan for a config.json of the OCI runtime-spec. Relative
// paths in it are relative to the bundle's directory.
func FromOCI(config []byte, bundle string, o Options) (*Plan, error) {
	s, err := ReadOCI(config, bundle)
	if err != nil {
		return nil, err
	}
	if s.Process != nil {
		o.Terminal = o.Terminal || s.Process.Terminal
	}
	if o.Name == "" {
		o.Name = "start " + filepath.Base(bundle)
	}
	o.PodBase = false
	return Container(s, o)
}

// ReadOCI reads a config.json of the OCI runtime-spec and makes its paths absolute.
func ReadOCI(config []byte, bundle string) (*specs.Spec, error) {
	s := &specs.Spec{}
	d := json.NewDecoder(bytes.NewReader(config))
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}

	if s.Version == "" {
		return nil, fmt.Errorf("read config.json: %w: ociVersion is missing", ErrSpec)
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return nil, fmt.Errorf("find bundle: %w", err)
	}

	absolute := func(p *string) {
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(bundle, *p)
		}
	}

	if s.Root != nil && s.Root.Path != "" {
		absolute(&s.Root.Path)
	}
	for i := range s.Mounts {
		if m := &s.Mounts[i]; isBind(m) {
			absolute(&m.Source)
		}
	}

	return s, nil
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || strings.Contains(","+strings.Join(m.Options, ",")+",", ",bind,") ||
		strings.Contains(","+strings.Join(m.Options, ",")+",", ",rbind,")
}
