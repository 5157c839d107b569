package registry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func writeHosts(t *testing.T, dir, host, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, hostsFile), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		name, host string
		files      map[string]string
		want       []string
	}{
		{"none", "h.io", nil, []string{"https://h.io/v2 rp upstream"}},
		{"Docker Hub", "docker.io", nil, []string{"https://registry-1.docker.io/v2 rp upstream"}},
		{"loopback", "localhost:5000", nil, []string{"http://localhost:5000/v2 rp upstream"}},
		{"loopback address", "127.1.2.3:5000", nil, []string{"http://127.1.2.3:5000/v2 rp upstream"}},
		{"loopback IPv6", "[::1]:5000", nil, []string{"http://[::1]:5000/v2 rp upstream"}},
		{"loopback HTTPS", "localhost:443", nil, []string{"https://localhost:443/v2 rp upstream"}},
		{"not loopback", "10.0.0.1:5000", nil, []string{"https://10.0.0.1:5000/v2 rp upstream"}},
		{"order", "h.io", map[string]string{"h.io": `
server = "https://up.io"
[host."https://z.io"]
  capabilities = ["pull"]
[host."https://a.io"]
  capabilities = ["pull", "resolve", "push"]
  [host."https://a.io".header]
    x = ["1", "2"]
[host."http://m.io:80/sub"]
`}, []string{"https://z.io/v2 p", "https://a.io/v2 rp", "http://m.io:80/sub/v2 rp", "https://up.io/v2 rp upstream"}},
		{"override path", "h.io", map[string]string{"h.io": "[host.\"https://m.io/v2/proxy\"]\noverride_path = true\n"},
			[]string{"https://m.io/v2/proxy rp", "https://h.io/v2 rp upstream"}},
		{"path with v2", "h.io", map[string]string{"h.io": "[host.\"https://m.io/x/v2/\"]\n"},
			[]string{"https://m.io/x/v2 rp", "https://h.io/v2 rp upstream"}},
		{"upstream listed as host", "h.io", map[string]string{"h.io": "server = \"https://h.io\"\n[host.\"https://h.io\"]\n[host.\"https://m.io\"]\n"},
			[]string{"https://h.io/v2 rp upstream", "https://m.io/v2 rp"}},
		{"inline table", "h.io", map[string]string{"h.io": "[host]\n\"https://b.io\" = {capabilities = [\"pull\"]}\n\"https://a.io\" = {}\n"},
			[]string{"https://b.io/v2 p", "https://a.io/v2 rp", "https://h.io/v2 rp upstream"}},
		{"default", "h.io", map[string]string{"_default": "[host.\"https://m.io\"]\n"}, []string{"https://m.io/v2 rp", "https://h.io/v2 rp upstream"}},
		{"own before default", "h.io", map[string]string{"_default": "[host.\"https://m.io\"]\n", "h.io": ""}, []string{"https://h.io/v2 rp upstream"}},
		{"port", "h.io:5000", map[string]string{"h.io:5000": "server = \"http://x\"\n"}, []string{"http://x/v2 rp upstream"}},
		{"port escaped", "h.io:5000", map[string]string{"h.io_5000_": "server = \"http://x\"\n"}, []string{"http://x/v2 rp upstream"}},
		{"IPv6 and port", "[2001:db8::1]:5000", map[string]string{"[2001:db8::1]:5000": "server = \"http://x\"\n"}, []string{"http://x/v2 rp upstream"}},
		{"IPv6 and port escaped", "[2001:db8::1]:5000", map[string]string{"[2001:db8::1]_5000_": "server = \"http://x\"\n"}, []string{"http://x/v2 rp upstream"}},
		{"escaped first", "h.io:5000", map[string]string{"h.io_5000_": "server = \"http://a\"\n", "h.io:5000": "server = \"http://b\"\n"}, []string{"http://a/v2 rp upstream"}},
		{"loopback with TLS settings", "localhost:5000", map[string]string{"localhost:5000": "skip_verify = true\n"}, []string{"https://localhost:5000/v2 rp upstream"}},
		{"unknown keys", "h.io", map[string]string{"h.io": "server = \"https://up.io\"\nplain_http = true\n"}, []string{"https://up.io/v2 rp upstream"}},
		{"server capabilities", "h.io", map[string]string{"h.io": "capabilities = [\"pull\"]\n"}, []string{"https://h.io/v2 p upstream"}},
		{"address without scheme", "h.io", map[string]string{"h.io": "server = \"up.io\"\n"}, []string{"https://up.io/v2 rp upstream"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for host, content := range c.files {
				writeHosts(t, dir, host, content)
			}

			eps, err := endpoints([]string{filepath.Join(dir, "missing"), dir}, c.host)
			if err != nil {
				t.Fatal(err)
			}

			var got []string
			for _, ep := range eps {
				s := ep.base.String() + " "
				if ep.resolve {
					s += "r"
				}
				if ep.pull {
					s += "p"
				}
				if ep.upstream {
					s += " upstream"
				}
				got = append(got, s)
			}

			if !slices.Equal(got, c.want) {
				t.Errorf("endpoints %q, want %q", got, c.want)
			}
		})
	}
}

func TestFirstDirectoryWins(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	writeHosts(t, a, "_default", `server = "https://default.io"`)
	writeHosts(t, b, "h.io", `server = "https://own.io"`)
	eps, err := endpoints([]string{a, b}, "h.io")
	if err != nil || fmt.Sprint(eps[0].base) != "https://own.io/v2" {
		t.Errorf("endpoints %v, %v", eps, err)
	}
}

func TestHostsErrors(t *testing.T) {
	for name, content := range map[string]string{
		"syntax":       `server = `,
		"capability":   "[host.\"https://m\"]\ncapabilities = [\"fly\"]\n",
		"scheme":       `server = "ftp://x"`,
		"credentials":  `server = "https://user:secret@x"`,
		"missing ca":   `ca = "nope.crt"`,
		"ca type":      `ca = 7`,
		"header type":  "[host.\"https://m\".header]\nx = 1\n",
		"dial_timeout": `dial_timeout = "soon"`,
		"client":       `client = [["a", "b", "c"]]`,
		"endless ca":   `ca = "/dev/zero"`,
		"fifo as ca":   `ca = "fifo"`,
		"fifo as key":  `client = [["fifo", "fifo"]]`,
	} {
		dir := t.TempDir()
		writeHosts(t, dir, "h.io", content)
		if err := unix.Mkfifo(filepath.Join(dir, "h.io", "fifo"), 0o600); err != nil {
			t.Fatal(err)
		}

		if _, err := endpoints([]string{dir}, "h.io"); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want %v", name, err, ErrConfig)
		}
	}
}

// TestHostsErrorsHideCredentials has credentials in addresses, where they do not belong:
// errors get into events of pods and into journals.
func TestHostsErrorsHideCredentials(t *testing.T) {
	for _, content := range []string{
		`server = "https://user:hunter2@x"`, `server = "user:hunter2@x"`, `server = "https://user:hunter2@x:port"`, `server = "https://user:hun ter2@x"`,
		"[host.\"https://user:hunter2@m/v2\"]\ncapabilities = [\"pull\"]\n",
	} {
		dir := t.TempDir()
		writeHosts(t, dir, "h.io", content)
		_, err := endpoints([]string{dir}, "h.io")
		if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "hun") || strings.Contains(err.Error(), "ter2") {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestUnknownKeysAreNamed(t *testing.T) {
	keys := unknownKeys([]byte("server = \"https://x\"\nskip_verfy = true\n[host.\"https://y\"]\ncapabilities = [\"pull\"]\nplain = 1\n[host.\"https://y\".header]\nanything = \"goes\"\n"))
	if len(keys) != 2 || keys[0] != "skip_verfy (line 2)" || !strings.Contains(keys[1], "plain") || !strings.Contains(keys[1], "line 5") {
		t.Errorf("unknown keys are %q", keys)
	}
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("server = \"https://x\"\n[host.\"http://y\"]\ncapabilities = [\"pull\"]\n[host.z.header]\na = \"b\"\n"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = parseHosts("/nonexistent", "h.io", data)
	})
}
