package resctrl

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fake is a directory that behaves as the kernel's file system: a new directory has
// files, and one with files can be removed. classes is how many the CPU has.
func fake(t *testing.T, classes int) *FS {
	t.Helper()
	f := &FS{root: t.TempDir()}
	fill := func(dir string) error {
		return errors.Join(
			os.WriteFile(filepath.Join(dir, "schemata"), []byte("    L3:0=7ff;1=7ff\n    MB:0= 100;1= 100\n"), 0o600),
			os.WriteFile(filepath.Join(dir, "tasks"), nil, 0o600), os.Mkdir(filepath.Join(dir, "mon_groups"), 0o700),
		)
	}

	f.mkdir = func(path string) error {
		if classes == 0 {
			return &os.PathError{Op: "mkdir", Path: path, Err: unix.ENOSPC}
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		classes--
		return fill(path)
	}
	f.rmdir = func(path string) error {
		if _, err := os.Stat(path); err != nil {
			return err
		}
		classes++
		return os.RemoveAll(path)
	}
	if err := fill(f.root); err != nil {
		t.Fatal(err)
	}
	return f
}

// entries are the directories below the root, without what each has.
func (f *FS) entries(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"*/schemata", "mon_groups/*/schemata", "*/mon_groups/*/schemata"} {
		found, err := filepath.Glob(filepath.Join(f.root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			out = append(out, strings.TrimPrefix(filepath.Dir(path), f.root+"/"))
		}
	}
	slices.Sort(out)
	return out
}

func (f *FS) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestLifecycle makes, joins and removes what containers request.
func TestLifecycle(t *testing.T) {
	for name, tt := range map[string]struct {
		request    specs.LinuxIntelRdt
		made, left []string
		schemata   string // of the first that was made
	}{
		"own class":           {specs.LinuxIntelRdt{Schemata: []string{"L3:0=f;1=f", "MB:0=20"}}, []string{"c1"}, nil, "L3:0=f;1=f\nMB:0=20\n"},
		"own class, as usual": {specs.LinuxIntelRdt{}, []string{"c1"}, nil, ""},
		"named class":         {specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=f", MemBwSchema: "MB:0=10"}, []string{"gold"}, []string{"gold"}, "L3:0=f\nMB:0=10\n"},
		"monitored":           {specs.LinuxIntelRdt{EnableMonitoring: true}, []string{"c1", "c1/mon_groups/c1"}, nil, ""},
		"default, monitored":  {specs.LinuxIntelRdt{ClosID: "/", EnableMonitoring: true}, []string{"mon_groups/c1"}, nil, ""},
		"default":             {specs.LinuxIntelRdt{ClosID: "/"}, nil, nil, ""},
		"default as it is":    {specs.LinuxIntelRdt{ClosID: "/", Schemata: []string{"L3:1=07FF", "MB:0=100"}}, nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := fake(t, 5)
			for range 2 { // as after a crash
				if err := f.Create("c1", &tt.request); err != nil {
					t.Fatal(err)
				}
				if got := f.entries(t); !slices.Equal(got, tt.made) {
					t.Errorf("made %q, want %q", got, tt.made)
				}
			}
			if tt.schemata != "" && f.read(t, tt.made[0]+"/schemata") != tt.schemata {
				t.Errorf("schemata %q, want %q", f.read(t, tt.made[0]+"/schemata"), tt.schemata)
			}

			files, err := f.Tasks("c1", &tt.request)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if _, err := file.WriteString("0"); err != nil {
					t.Error(err)
				}
				file.Close()
			}
			if err := f.Add("c1", &tt.request, 77); err != nil {
				t.Error(err)
			}
			for _, dir := range f.joined("c1", &tt.request) {
				if data, err := os.ReadFile(filepath.Join(dir, "tasks")); err != nil || string(data) != "77\n" {
					t.Errorf("tasks of %s: %q, %v", dir, data, err)
				}
			}
			for range 2 {
				if err := f.Remove("c1", &tt.request); err != nil {
					t.Error(err)
				}
			}
			if got := f.entries(t); !slices.Equal(got, tt.left) {
				t.Errorf("left %q, want %q", got, tt.left)
			}
		})
	}
}

// TestRefused expects nothing to be made for what cannot be met, and what others use
// to stay as it is.
func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		request specs.LinuxIntelRdt
		classes int
		err     error
	}{
		"missing class":       {specs.LinuxIntelRdt{ClosID: "silver"}, 5, ErrUnsupported},
		"none left":           {specs.LinuxIntelRdt{}, 0, ErrUnsupported},
		"none left, named":    {specs.LinuxIntelRdt{ClosID: "silver", Schemata: []string{"L3:0=f"}}, 0, ErrUnsupported},
		"no monitor left":     {specs.LinuxIntelRdt{EnableMonitoring: true}, 1, ErrUnsupported},
		"another's class":     {specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L3:0=1"}}, 5, ErrConflict},
		"the default's":       {specs.LinuxIntelRdt{ClosID: "/", MemBwSchema: "MB:0=10"}, 5, ErrConflict},
		"unknown resource":    {specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L9:0=1"}}, 5, ErrConflict},
		"no line":             {specs.LinuxIntelRdt{Schemata: []string{"L3"}}, 5, ErrInvalid},
		"two lines":           {specs.LinuxIntelRdt{Schemata: []string{"L3:0=1\nMB:0=1"}}, 5, ErrInvalid},
		"no share":            {specs.LinuxIntelRdt{L3CacheSchema: "L3:0="}, 5, ErrInvalid},
		"outside":             {specs.LinuxIntelRdt{ClosID: "../../etc"}, 5, ErrInvalid},
		"above":               {specs.LinuxIntelRdt{ClosID: ".."}, 5, ErrInvalid},
		"below":               {specs.LinuxIntelRdt{ClosID: "gold/mon_groups"}, 5, ErrInvalid},
		"the kernel's own":    {specs.LinuxIntelRdt{ClosID: "info", Schemata: []string{"L3:0=1"}}, 5, ErrInvalid},
		"NUL in a class":      {specs.LinuxIntelRdt{ClosID: "a\x00b"}, 5, ErrInvalid},
		"very long class":     {specs.LinuxIntelRdt{ClosID: strings.Repeat("x", 300)}, 5, ErrInvalid},
		"a newline in a name": {specs.LinuxIntelRdt{ClosID: "a\nb"}, 5, ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			left := tt.classes
			f := fake(t, left+1)
			if err := f.mkdir(filepath.Join(f.root, "gold")); err != nil {
				t.Fatal(err)
			}

			before := f.read(t, "gold/schemata") + f.read(t, "schemata")
			if err := f.Create("c1", &tt.request); !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			if errors.Is(tt.err, ErrInvalid) == (Check(&tt.request) == nil) {
				t.Errorf("check says %v", Check(&tt.request))
			}
			if tt.err != ErrInvalid {
				if err := f.Remove("c1", &tt.request); err != nil {
					t.Error(err)
				}
			}
			if got := f.entries(t); !slices.Equal(got, []string{"gold"}) || f.read(t, "gold/schemata")+f.read(t, "schemata") != before {
				t.Errorf("left %q, or a changed class", got)
			}
		})
	}
}

// TestOpen expects a directory that is no such file system to be refused by name.
func TestOpen(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/no/such/directory"} {
		if _, err := Open(dir); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "resctrl file system is not mounted at "+dir) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
