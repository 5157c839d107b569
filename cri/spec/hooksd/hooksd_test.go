package hooksd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/hook"
)

func container() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Args: []string{"/usr/bin/python3", "-c", "pass"}}}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestInject checks which files apply and in which order.
func TestInject(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	file := func(path, stages string) string {
		return `{"version": "1.0.0", "hook": {"path": "` + path + `", "args": ["a", "b"], "env": ["X=y"], "timeout": 3}, "when": {"always": true}, "stages": [` + stages + `]}`
	}
	write(t, first, "b.json", file("/b", `"prestart"`))
	write(t, first, "A.json", file("/a", `"poststop", "prestart"`))
	write(t, first, "c.json", file("/hidden", `"prestart"`))
	write(t, second, "c.json", file("/c", `"prestart"`))
	write(t, second, "readme.txt", "no definition")

	s := container()
	dirs := []string{first, filepath.Join(first, "missing"), second}
	sources, err := Inject(dirs, func(err error) { t.Error(err) }, s, nil, nil)
	if err != nil {
		t.Fatal(err)
	}

	var got []string
	for _, h := range hook.List(s.Hooks, sources) {
		got = append(got, h.String())
		if !slices.Equal(h.Args, []string{"a", "b"}) || !slices.Equal(h.Env, []string{"X=y"}) || *h.Timeout != 3 {
			t.Errorf("hook %+v", h)
		}
	}
	want := []string{
		"prestart hook /a (file " + first + "/A.json)", "prestart hook /b (file " + first + "/b.json)",
		"prestart hook /c (file " + second + "/c.json)", "poststop hook /a (file " + first + "/A.json)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("hooks\n%q\nwant\n%q", got, want)
	}
}

func TestWhen(t *testing.T) {
	annotations := map[string]string{"com.example/gpu": "yes", "other": "no"}
	volume := specs.Mount{Destination: "/data", Type: "bind", Source: "/srv"}
	hosts := specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/x"}
	for name, c := range map[string]struct {
		when   string
		mounts []specs.Mount
		want   bool
	}{
		"always":                     {`"always": true`, nil, true},
		"never":                      {`"always": false`, nil, false},
		"never, else true":           {`"always": false, "commands": [".*"]`, nil, false},
		"annotation":                 {`"annotations": {"^com\\.example/.*$": "^y"}`, nil, true},
		"annotation of other value":  {`"annotations": {"^com\\.example/.*$": "^n"}`, nil, false},
		"two annotations":            {`"annotations": {"gpu": ".*", "^other$": "no"}`, nil, true},
		"one of two annotations":     {`"annotations": {"gpu": ".*", "^other$": "yes"}`, nil, false},
		"command":                    {`"commands": ["^/bin/sh$", "python"]`, nil, true},
		"other command":              {`"commands": ["^python"]`, nil, false},
		"command, wrong annotation":  {`"commands": ["python"], "annotations": {"gpu": "^no$"}`, nil, false},
		"volumes":                    {`"hasBindMounts": true`, []specs.Mount{volume}, true},
		"no volumes":                 {`"hasBindMounts": true`, []specs.Mount{hosts}, false},
		"without volumes":            {`"hasBindMounts": false`, []specs.Mount{hosts}, true},
		"without volumes, has some":  {`"hasBindMounts": false`, []specs.Mount{volume}, false},
		"always and without volumes": {`"always": true, "hasBindMounts": false`, []specs.Mount{volume}, false},
	} {

		dir := t.TempDir()
		write(t, dir, "x.json", `{"version": "1.0.0", "hook": {"path": "/x"}, "when": {`+c.when+`}, "stages": ["prestart"]}`)
		s := container()
		s.Mounts = c.mounts
		if _, err := Inject([]string{dir}, func(err error) { t.Error(err) }, s, nil, annotations); err != nil {
			t.Error(err)
		}
		if got := len(hook.List(s.Hooks, nil)) == 1; got != c.want {
			t.Errorf("%s: applies is %v, want %v", name, got, c.want)
		}
	}
}

// TestBroken names each bad file; the good one applies.
func TestBroken(t *testing.T) {
	dir := t.TempDir()
	good := `{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"always": true}, "stages": ["prestart"]}`
	write(t, dir, "good.json", good)
	bad := map[string]string{
		"broken.json": "{", "empty.json": "", "version.json": strings.Replace(good, "1.0.0", "0.1.0", 1),
		"relative.json": strings.Replace(good, "/x", "x", 1), "when.json": strings.Replace(good, `"always": true`, "", 1),
		"stage.json": strings.Replace(good, `["prestart"]`, `["sometimes"]`, 1), "stages.json": strings.Replace(good, `["prestart"]`, "[]", 1),
		"pattern.json": strings.Replace(good, `"always": true`, `"commands": ["("]`, 1), "field.json": strings.Replace(good, "stages", "moments", 1),
		"big.json": strings.Repeat(" ", maxFile) + good,
	}
	for name, content := range bad {
		write(t, dir, name, content)
	}
	if err := errors.Join(
		os.Symlink("/nowhere", filepath.Join(dir, "gone.json")), os.Symlink("/dev/zero", filepath.Join(dir, "endless.json")),
		os.Mkdir(filepath.Join(dir, "directory.json"), 0o700), unix.Mkfifo(filepath.Join(dir, "fifo.json"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	bad["endless.json"], bad["directory.json"], bad["fifo.json"] = "", "", ""

	var named []string
	s := container()
	if _, err := Inject([]string{dir}, func(err error) { named = append(named, err.Error()) }, s, nil, nil); err != nil {
		t.Fatal(err)
	}
	if len(hook.List(s.Hooks, nil)) != 1 || len(named) != len(bad) {
		t.Errorf("%d hooks, errors %q", len(hook.List(s.Hooks, nil)), named)
	}
	for name := range bad {
		if !slices.ContainsFunc(named, func(err string) bool { return strings.HasPrefix(err, filepath.Join(dir, name)+": ") }) {
			t.Errorf("%s is not named: %q", name, named)
		}
	}
}
