package layer

import (
	"errors"
	"maps"
	"path"
	"strings"
	"testing"
)

// model is what a layer's tree should be, in the notation of sandbox.listing.
// It knows everything but what lies beyond links.
type model map[string]string

var (
	errModel   = errors.New("no such entry is possible")
	errUnknown = errors.New("leads through a link")
)

func isDirText(text string) bool { return text == "dir" || text == "opaque dir" }

// parents makes the directories above a name.
func (m model) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}

	if err := m.parents(dir); err != nil {
		return err
	}
	text, ok := m[dir]
	switch {
	case !ok:
		m[dir] = "dir"
	case strings.HasPrefix(text, "-> "):
		return errUnknown
	case !isDirText(text):
		return errModel
	}

	return nil
}

func (m model) remove(name string) {
	delete(m, name)
	maps.DeleteFunc(m, func(p, _ string) bool { return strings.HasPrefix(p, name+"/") })
}

// put makes what is not a directory.
func (m model) put(name, text string) error {
	if err := m.parents(name); err != nil {
		return err
	}
	m.remove(name)
	m[name] = text
	return nil
}

func (m model) directory(name string) error {
	if err := m.parents(name); err != nil {
		return err
	}
	switch text := m[name]; {
	case isDirText(text):
	case text == "whiteout":
		m[name] = "opaque dir"
	default:
		m[name] = "dir"
	}
	return nil
}

func (m model) hard(name, target string) error {
	above := path.Dir(target)
	for dir := above; dir != "."; dir = path.Dir(dir) {
		if strings.HasPrefix(m[dir], "-> ") {
			return errUnknown
		}
	}

	if above != "." && !isDirText(m[above]) || target == name {
		return errModel
	}
	if err := m.parents(name); err != nil {
		return err
	}

	text, ok := m[target]
	if !ok || isDirText(text) {
		return errModel
	}

	if _, ok := m[name]; ok {
		m.remove(name)
	}
	if _, ok := m[target]; !ok {
		return errModel // it was in what had to go
	}

	m[name] = text
	return nil
}

func (m model) whiteout(name string) error {
	if err := m.parents(name); err != nil {
		return err
	}
	text, ok := m[name]
	switch {
	case !ok:
		m[name] = "whiteout"
	case isDirText(text):
		m[name] = "opaque dir"
	}
	return nil
}

func (m model) opaque(dir string) error {
	if err := m.parents(dir + "/x"); err != nil {
		return err
	}
	m[dir] = "opaque dir"
	return nil
}

// step turns two bytes into an entry, and does the same to the model.
func (m model) step(op, arg byte) (entry, error) {
	names := []string{"a", "b", "a/b", "a/b/c", "b/c", "a/d", "b/c/e", "f"}
	name, other := names[arg%8], names[arg/8%8]
	whiteoutName := path.Join(path.Dir(name), whiteoutPrefix+path.Base(name))
	text := string(rune('0' + arg%10))

	switch op % 6 {
	case 0:
		return directory(name, 0o755), m.directory(name)
	case 1:
		return link(name, "nowhere"), m.put(name, "-> nowhere")
	case 2:
		return hard(name, other), m.hard(name, other)
	case 3:
		return reg(whiteoutName, ""), m.whiteout(name)
	case 4:
		return reg(path.Join(name, whiteoutOpaque), ""), m.opaque(name)
	default:
		return reg(name, text), m.put(name, text)
	}
}

// FuzzLayer unpacks archives of few names, so that entries meet, and compares
// what comes of them with a simple model.
func FuzzLayer(f *testing.F) {
	for _, seed := range [][]byte{
		{0, 0, 5, 2, 3, 2}, {5, 0, 0, 0}, {3, 0, 0, 0, 5, 5}, {1, 0, 5, 2}, {5, 0, 2, 1, 5, 0},
		{5, 3, 2, 8 * 3, 5, 0}, {0, 0, 4, 0, 3, 0}, {5, 2, 2, 2 * 8, 0, 2}, {3, 2, 5, 2, 3, 2, 0, 2}, {5, 4, 2, 4*8 + 1},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		m, entries := model{}, []entry{}
		var want error
		for i := 0; i+1 < min(len(program), 128) && want == nil; i += 2 {
			var e entry
			e, want = m.step(program[i], program[i+1])
			entries = append(entries, e)
		}

		s := newSandbox(t)
		_, err := s.unpack(false, entries...)
		switch {
		case errors.Is(want, errUnknown): // nothing outside was touched
			return
		case want != nil:
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v of %v, want %v", err, entries, ErrInvalid)
			}
			return
		case err != nil:
			t.Fatalf("%v of %v", err, entries)
		}

		if got := s.listing(); !maps.Equal(got, m) {
			t.Errorf("unpacked %q from %v, want %q", got, entries, m)
		}
	})
}
