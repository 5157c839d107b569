// Package migrate translates the configurations of containerd and CRI-O.
//
// What they set is a flat list of paths, each of which a row of a table translates
// to a key of crisp's, or says why there is no need to. What no row covers is listed:
// nothing is dropped in silence.
package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"crisp/cri/config"
)

// ErrUnknown is a file that is neither containerd's nor CRI-O's.
var ErrUnknown = errors.New("neither a configuration of containerd nor of CRI-O")

// row translates the settings whose path matches a pattern of [path.Match], with
// slashes between the levels.
type row struct {
	pattern string
	key     string                  // of crisp's; "" for none
	convert func(any, settings) any // nil for the value itself; nil result for "not set"
	why     string                  // without a key: why nothing needs to be set
	// defaults are the names of handlers that need none.
	defaults []string
}

// name is what a path has in place of the pattern's star.
func (r row) name(at string) string {
	return strings.Split(at, "/")[slices.Index(strings.Split(r.pattern, "/"), "*")]
}

// settings are values by path.
type settings map[string]any

// result is the outcome of a translation.
type result struct {
	keys     map[string]any
	notes    map[string]string // why a setting has no key, by path
	unknown  map[string]string // what has no counterpart, by path, and why, if that is known
	handlers []string
}

// File is a configuration to translate.
type File struct {
	Name string // for messages
	Data []byte
}

// Translate returns the configuration of crisp that does what files say, of which
// later ones replace settings of earlier ones, with comments about what has no
// counterpart.
func Translate(files ...File) (string, error) {
	from, rows := "", []row(nil)
	var names []string
	set := settings{}
	for _, f := range files {
		var tree map[string]any
		if err := toml.Unmarshal(f.Data, &tree); err != nil {
			return "", fmt.Errorf("%s: %w", f.Name, err)
		}
		kind := ""
		switch {
		case tree["crio"] != nil:
			kind, rows = "CRI-O", crio()
		case tree["plugins"] != nil || tree["version"] != nil:
			kind, rows = "containerd", containerd()
		default:
			return "", fmt.Errorf("%s is %w", f.Name, ErrUnknown)
		}
		if from != "" && kind != from {
			return "", fmt.Errorf("%s is a configuration of %s, and %s one of %s: translate them one by one", names[0], from, f.Name, kind)
		}
		from, names = kind, append(names, f.Name)
		flatten("", tree, set)
	}

	name := strings.Join(names, ", ")
	r := translate(set, rows)
	text, err := r.text(from, name)
	if err != nil {
		return "", err
	}
	if _, err := config.Parse(name+" as translated", []byte(text)); err != nil {
		return "", err
	}
	return text, nil
}

// flatten collects the values of a tree. Names of containerd's plugins have dots.
func flatten(prefix string, tree map[string]any, into settings) {
	for name, value := range tree {
		at := strings.ReplaceAll(name, "/", "\\")
		if prefix != "" {
			at = prefix + "/" + at
		}
		if sub, ok := value.(map[string]any); ok {
			flatten(at, sub, into)
		} else {
			into[at] = value
		}
	}
}

// translate applies the first row that matches each setting.
func translate(set settings, rows []row) result {
	r := result{keys: map[string]any{}, notes: map[string]string{}, unknown: map[string]string{}}
	for _, at := range slices.Sorted(maps.Keys(set)) {
		i := slices.IndexFunc(rows, func(row row) bool {
			ok, err := path.Match(row.pattern, at)
			return err == nil && ok
		})
		if i < 0 {
			r.unknown[at] = ""
			continue
		}

		row, value := rows[i], set[at]
		if row.convert != nil {
			value = row.convert(value, set)
		}
		switch {
		case row.key == "":
			r.notes[at] = row.why
		case value == nil:
		case row.key == handlersKey:
			switch h := row.name(at); {
			case isolates(at, set):
				r.unknown[at] = "crisp runs ordinary containers only, and refuses pods with this RuntimeClass: they need other nodes"
			case !slices.Contains(row.defaults, h):
				r.handlers = append(r.handlers, h)
			}
		default:
			r.keys[row.key] = value
		}
	}
	if len(r.handlers) > 0 {
		r.keys[handlersKey] = r.handlers
	}
	return r
}

// handlersKey is the key that several settings of a file make together.
const handlersKey = "runtime_handlers"

// text is the configuration with its comments.
func (r result) text(from, name string) (string, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Translated from %s, a configuration of %s.\n# kubelet's containerRuntimeEndpoint becomes unix://%s.\n", name, from, config.Default().Socket())
	for _, key := range slices.Sorted(maps.Keys(r.keys)) {
		line, err := toml.Marshal(map[string]any{key: r.keys[key]})
		if err != nil {
			return "", fmt.Errorf("%s: %w", key, err)
		}
		b.Write(line)
	}

	if len(r.notes) > 0 {
		b.WriteString("\n# Settings that need no counterpart:\n")
		for _, at := range slices.Sorted(maps.Keys(r.notes)) {
			fmt.Fprintf(&b, "#   %q: %s\n", at, r.notes[at])
		}
	}
	if len(r.unknown) > 0 {
		b.WriteString("\n# Settings without a counterpart:\n")
		for _, at := range slices.Sorted(maps.Keys(r.unknown)) {
			line := fmt.Sprintf("#   %q", at)
			if why := r.unknown[at]; why != "" {
				line += ": " + why
			}
			fmt.Fprintln(&b, line)
		}
	}
	return b.String(), nil
}
