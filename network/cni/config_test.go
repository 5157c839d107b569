package cni

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func list(name string) string {
	return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"bridge","capabilities":{"portMappings":true,"mac":false}}]}`
}

func TestLoadTakesTheFirstFile(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"by name":                  {"10-a.conflist": list("want"), "20-b.conflist": list("other")},
		"whatever the suffix":      {"10-a.json": list("want"), "05-note.txt": "x", "20-b.conflist": list("other")},
		"single plugin":            {"a.conf": `{"name":"want","type":"bridge","cniVersion":"0.4.0"}`},
		"single plugin, json":      {"a.json": `{"name":"want","type":"bridge"}`},
		"directories do not count": {"00.conflist/want/x.txt": "x", "10.conflist": list("want")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range files {
				write(t, filepath.Join(dir, file), text)
			}

			conf, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if conf.Name() != "want" || len(conf.list.Plugins) != 1 || conf.list.Plugins[0].Network.Type != "bridge" {
				t.Errorf("loaded %s with %d plugins", conf.Name(), len(conf.list.Plugins))
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no json":       `{"name":`,
		"empty":         ``,
		"no name":       `{"plugins":[{"type":"bridge"}]}`,
		"bad name":      `{"name":"../x","plugins":[{"type":"bridge"}]}`,
		"no plugins":    `{"name":"a","cniVersion":"1.0.0"}`,
		"zero plugins":  `{"name":"a","plugins":[]}`,
		"nameless type": `{"name":"a","plugins":[{"bridge":"x"}]}`,
		"too long":      `{"name":"a","plugins":[{"type":"` + strings.Repeat("x", maxConfig) + `"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "10-a.conflist"), text)
			write(t, filepath.Join(dir, "20-b.conflist"), list("other"))

			_, err := Load(dir)
			if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), "10-a.conflist") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestLoadWaitsForNothing has files that could be read forever.
func TestLoadWaitsForNothing(t *testing.T) {
	dir := t.TempDir()
	fifo, endless := filepath.Join(dir, "10-fifo.conflist"), filepath.Join(dir, "20-endless.conflist")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink("/dev/zero", endless)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{fifo, endless} {
		if _, err := LoadFile(file); !errors.Is(err, ErrInvalidConfig) || !errors.Is(err, rootpath.ErrNotRegular) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestLoadSeesEveryChange(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	expect := func(step, name string) {
		t.Helper()
		conf, err := Load(dir)
		if name == "" {
			if !errors.Is(err, ErrNoConfig) {
				t.Errorf("%s: got %v", step, err)
			}
			return
		}

		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if conf.Name() != name {
			t.Errorf("%s: loaded %s, not %s", step, conf.Name(), name)
		}
	}

	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	expect("no directory", "")
	write(t, filepath.Join(dir, "a.conflist"), list("one"))
	expect("directory made", "one")
	write(t, filepath.Join(dir, "a.conflist"), list("two"))
	expect("rewritten in place with the same length", "two")

	elsewhere := filepath.Join(t.TempDir(), "x")
	write(t, elsewhere, list("three"))
	check(os.Rename(elsewhere, filepath.Join(dir, "a.conflist")))
	expect("moved in", "three")
	check(os.RemoveAll(dir))
	expect("directory removed", "")

	// The way a ConfigMap is mounted: files are links through a link that is
	// switched.
	write(t, filepath.Join(dir, "..v1", "a.conflist"), list("four"))
	write(t, filepath.Join(dir, "..v2", "a.conflist"), list("five"))
	check(os.Symlink("..v1", filepath.Join(dir, "..data")))
	check(os.Symlink("..data/a.conflist", filepath.Join(dir, "a.conflist")))
	expect("linked", "four")
	check(os.Symlink("..v2", filepath.Join(dir, "..new")))
	check(os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
	expect("switched", "five")
}

func TestLoadInlinesPluginFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.conflist"), list("net"))
	write(t, filepath.Join(dir, "net", "tuning.conf"), `{"type":"tuning"}`)
	conf, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}

	// What the DEL of an attachment is made from must not need the directory.
	again, err := parse(conf.Bytes())
	if err != nil {
		t.Fatal(err)
	}

	if len(again.Plugins) != 2 || again.Plugins[1].Network.Type != "tuning" || again.CNIVersion != "1.0.0" {
		t.Errorf("text of configuration is %s", conf.Bytes())
	}
}

func TestDeclares(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.conflist"), list("net"))
	conf, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for capability, want := range map[string]bool{"portMappings": true, "mac": false, "ips": false} {
		if got := conf.Declares(capability); got != want {
			t.Errorf("Declares(%q) = %t", capability, got)
		}
	}
}
