// Package hooksd adds the hooks that the node's administrator has defined for
// all containers, or some of them, to a container's runtime-spec.
//
// A definition is a JSON file in one of several directories, as oci-hooks(5)
// describes, of version 1.0.0: a hook, the stages at which it runs, and when it
// applies. The file with a name in a later directory replaces that in an earlier
// one. Definitions are read again for each container.
package hooksd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/hook"
	"crisp/runtime/rootpath"
)

// ErrInvalid is a definition that cannot be used.
var ErrInvalid = errors.New("invalid hook definition")

// version is the supported version of definitions.
const version = "1.0.0"

// maxFile bounds the size of a definition in bytes.
const maxFile = 1 << 20

// definition is the content of a file.
type definition struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    when       `json:"when"`
	Stages  []string   `json:"stages"`
	// path is the file's.
	path string
}

// when are conditions, of which all that are present must hold.
type when struct {
	Always        *bool             `json:"always"`
	Annotations   map[string]string `json:"annotations"`
	Commands      []string          `json:"commands"`
	HasBindMounts *bool             `json:"hasBindMounts"`
}

// Inject adds the hooks of all definitions in dirs that apply to a container
// with the spec s and the given annotations. It returns sources with those of
// the added hooks. A broken file is passed to broken, and the others apply.
func Inject(dirs []string, broken func(error), s *specs.Spec, sources hook.Sources, annotations map[string]string) (hook.Sources, error) {
	files, err := list(dirs)
	if err != nil {
		return sources, err
	}
	for _, file := range files {
		d, err := read(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			broken(fmt.Errorf("%s: %w", file, err))
			continue
		}
		if !d.applies(s, annotations) {
			continue
		}

		for _, stage := range d.Stages {
			sources = hook.Add(s, sources, hook.Hook{Kind: hook.Kind(stage), Hook: d.Hook, Source: "file " + d.path})
		}
	}
	return sources, nil
}

// list returns the paths of all definitions, in the order of their names.
func list(dirs []string) ([]string, error) {
	files := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list hook definitions: %w", err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}

	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		return strings.Compare(strings.ToLower(a), strings.ToLower(b))
	})
	var out []string
	for _, name := range names {
		out = append(out, files[name])
	}
	return out, nil
}

// read reads and checks a definition.
func read(path string) (*definition, error) {
	data, err := rootpath.ReadNodeFile(path, maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}

	d := &definition{path: path}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return d, d.check()
}

func (d *definition) check() error {
	if d.Version != version {
		return fmt.Errorf("%w: version %q, want %q", ErrInvalid, d.Version, version)
	}
	if len(d.Stages) == 0 {
		return fmt.Errorf("%w: no stages", ErrInvalid)
	}
	for _, stage := range d.Stages {
		if err := (hook.Hook{Kind: hook.Kind(stage), Hook: d.Hook}).Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}

	w := &d.When
	if w.Always == nil && w.HasBindMounts == nil && len(w.Annotations) == 0 && len(w.Commands) == 0 {
		return fmt.Errorf("%w: no condition in \"when\"", ErrInvalid)
	}
	patterns := slices.Clone(w.Commands)
	for key, value := range w.Annotations {
		patterns = append(patterns, key, value)
	}
	for _, p := range patterns {
		if _, err := regexp.Compile(p); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return nil
}

// applies reports whether all conditions hold. The patterns were checked.
func (d *definition) applies(s *specs.Spec, annotations map[string]string) bool {
	w := &d.When
	if w.Always != nil && !*w.Always {
		return false
	}
	if w.HasBindMounts != nil && *w.HasBindMounts != hasBindMounts(s) {
		return false
	}
	for key, value := range w.Annotations {
		k, v := regexp.MustCompile(key), regexp.MustCompile(value)
		if !has(annotations, func(key, value string) bool { return k.MatchString(key) && v.MatchString(value) }) {
			return false
		}
	}

	program := ""
	if s.Process != nil && len(s.Process.Args) > 0 {
		program = s.Process.Args[0]
	}
	return len(w.Commands) == 0 || slices.ContainsFunc(w.Commands, func(p string) bool { return regexp.MustCompile(p).MatchString(program) })
}

func has(annotations map[string]string, matches func(key, value string) bool) bool {
	for key, value := range annotations {
		if matches(key, value) {
			return true
		}
	}
	return false
}

// hasBindMounts reports whether the container has volumes: all have the bind
// mounts of the pod's own files.
func hasBindMounts(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		own := []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}
		return (m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")) && !slices.Contains(own, m.Destination)
	})
}
