package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigCheck passes a file with and without its flag, and refers to one
// missing thing after another.
func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	conf := filepath.Join(dir, "net.d")
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}

	plain := file("plain", "")
	broken := file("profile.json", "{")
	base := "state = \"" + dir + "/state\"\nlisten = \"" + dir + "/s\"\ncni_conf_dir = \"" + conf + "\"\n"
	for _, c := range []struct{ name, text, want string }{
		{"good", "", ""},
		{"missing seccomp profile", "seccomp_profile = \"" + dir + "/none.json\"\n", "seccomp_profile: "},
		{"invalid seccomp profile", "seccomp_profile = \"" + broken + "\"\n", "seccomp_profile: "},
		{"image name", "pinned_images = [\"Not An Image\"]\n", "pinned_images: "},
		{"image pattern", "pinned_images = [\"a[\"]\n", "pinned_images: "},
		{"file for a directory", "cni_bin_dirs = [\"" + plain + "\"]\n", "is not a directory"},
		{"file for the root", "root = \"" + plain + "/x\"\n", "root: "},
		{"file for a socket", "listen = \"" + plain + "\"\n", "is not a socket"},
		{"handler", "runtime_handlers = [\"A\"]\n", "runtime_handlers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := c.text
			for line := range strings.Lines(base) {
				key, _, _ := strings.Cut(line, " ")
				if !strings.Contains(text, key+" =") {
					text += line
				}
			}

			path := file("config.toml", text)
			for _, args := range [][]string{{"config", "check", path}, {"config", "check", "--config", path}, {"config", "check", "--log-level", "debug", path}} {
				var out strings.Builder
				err := run(t.Context(), args, &out)
				if c.want == "" {
					if err != nil || !strings.Contains(out.String(), "valid") || !strings.Contains(out.String(), "no network configuration in "+conf) {
						t.Errorf("%q: %v, printed %q", args, err, &out)
					}
				} else if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%q: %v, want %q", args, err, c.want)
				}
			}
		})
	}

	if err := run(t.Context(), []string{"config", "check", plain, plain}, &strings.Builder{}); err == nil {
		t.Error("two files were accepted")
	}
	file("net.d/10.conf", "{")

	path := file("config.toml", base)
	if err := run(t.Context(), []string{"config", "check", path}, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "cni_conf_dir") {
		t.Errorf("a broken network configuration: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("the check has made the state directory")
	}
}

// TestPlanSaysWhatAFileIs passes files to plan that it does not accept.
func TestPlanSaysWhatAFileIs(t *testing.T) {
	for text, want := range map[string]string{
		`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {}}`:      "a Kubernetes Pod",
		`{"metadata": {"name": "web", "namespace": "n", "uid": "u"}, "log_directory": "/"}`: "a pod sandbox (web)",
		`{"something": "else"}`: "not a container's configuration",
		`{}`:                    "no metadata.name",
		`[1]`:                   "neither",
	} {
		path := filepath.Join(t.TempDir(), "x.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(t.Context(), []string{"plan", path}, &strings.Builder{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("plan of %s: %v, want %q", text, err, want)
		}
	}
}
