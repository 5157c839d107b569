package launch

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// tree makes files below a directory, by path: a directory if the text is "/", a link
// if it begins with "->", else a file with that text.
func tree(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}

		switch {
		case text == "/":
			if err := os.MkdirAll(at, 0o755); err != nil {
				t.Fatal(err)
			}
		case text[:2] == "->":
			if err := os.Symlink(text[2:], at); err != nil {
				t.Fatal(err)
			}
		default:
			write(t, at, text)
		}
	}
}

func tmpfs(dest string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}}
}

// TestWhereTargetsLand resolves mount targets through links of the image and of
// earlier mounts.
func TestWhereTargetsLand(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{
		"token/token": "secret\n", "file": "text\n", "empty": "/", "other/mark": "other\n",
		"linked/in": "->/data/deep", "linked/up": "->../data/up", "linked/file": "->/data/nowhere/file", "linked/sub": "/", "linked/rel": "->sub",
	})

	at := func(name, dest string, options ...string) specs.Mount {
		return bind(filepath.Join(dir, name), dest, options...)
	}
	const token = "/var/run/secrets/kubernetes.io/serviceaccount"
	debian := map[string]string{"var/run": "->/run", "run": "/"}
	tests := []struct {
		name   string
		image  map[string]string
		mounts []specs.Mount
		cwd    string
		script string
		want   string
	}{
		{"token below a link into a tmpfs", debian, []specs.Mount{tmpfs("/run"), at("token", token, "ro")}, "", "cat /run/secrets/*/*/token " + token + "/token", "secret\nsecret"},
		{"token before the volume", debian, []specs.Mount{at("token", token), tmpfs("/run")}, "", "cat " + token + "/token", "secret"},
		{"volume on the link", debian, []specs.Mount{at("token", "/run/x"), tmpfs("/var/run")}, "", "cat /run/x/token /var/run/x/token", "secret\nsecret"},
		{"token below a link into a bind", debian, []specs.Mount{tmpfs("/run"), at("token", token)}, "", "cat " + token + "/token", "secret"},
		{"relative link", map[string]string{"var/run": "->../run", "run": "/"}, []specs.Mount{tmpfs("/run"), at("token", token)}, "", "cat /run/secrets/*/*/token", "secret"},
		{"link with dots beyond the root", map[string]string{"var/run": "->../../../run", "run": "/"}, []specs.Mount{tmpfs("/run"), at("token", token)}, "", "cat /run/secrets/*/*/token", "secret"},
		{"chain of links", map[string]string{"a": "->b", "b": "->c/d", "c": "->/run", "run/d": "/"}, []specs.Mount{tmpfs("/run"), at("token", "/a/x/y")}, "", "cat /run/d/x/y/token", "secret"},
		{"file by a dangling link into a tmpfs", map[string]string{"etc/resolv.conf": "->/run/systemd/resolve/stub.conf", "run": "/"}, []specs.Mount{tmpfs("/run"), at("file", "/etc/resolv.conf")}, "", "cat /etc/resolv.conf /run/systemd/resolve/stub.conf", "text\ntext"},
		{"file by a relative dangling link", map[string]string{"etc/resolv.conf": "->../run/resolv.conf", "run": "/"}, []specs.Mount{tmpfs("/run"), at("file", "/etc/resolv.conf")}, "", "cat /run/resolv.conf", "text"},
		{"file by a link to a file", map[string]string{"etc/resolv.conf": "->/run/r", "run/r": "old\n"}, []specs.Mount{at("file", "/etc/resolv.conf")}, "", "cat /run/r", "text"},
		{"link hidden by a mount", map[string]string{"a/b": "->/elsewhere"}, []specs.Mount{tmpfs("/a"), at("token", "/a/b")}, "", "cat /a/b/token; ls -d /elsewhere 2>/dev/null", "secret"},
		{"dots in the request", nil, []specs.Mount{tmpfs("/run"), at("token", "/run/../run/./x//y/")}, "", "cat /run/x/y/token", "secret"},
		{"absolute link in a volume", nil, []specs.Mount{tmpfs("/data"), at("linked", "/v"), at("token", "/v/in/x")}, "", "cat /data/deep/x/token", "secret"},
		{"relative link out of a volume", nil, []specs.Mount{tmpfs("/data"), at("linked", "/v"), at("token", "/v/up")}, "", "cat /data/up/token", "secret"},
		{"link within a volume", nil, []specs.Mount{at("linked", "/v"), at("token", "/v/rel")}, "", "cat /v/sub/token", "secret"},
		{"file by a dangling link in a volume", nil, []specs.Mount{tmpfs("/data"), at("linked", "/v"), at("file", "/v/file")}, "", "cat /data/nowhere/file", "text"},
		{"link of the image into a volume with links", map[string]string{"l": "->/v/rel"}, []specs.Mount{at("linked", "/v"), at("token", "/l")}, "", "cat /v/sub/token /l/token", "secret\nsecret"},
		{"two at one place", debian, []specs.Mount{at("token", "/run"), at("other", "/var/run")}, "", "cat /run/mark", "other"},
		{"working directory in a mount", debian, []specs.Mount{tmpfs("/run")}, "/var/run/app/x", "pwd", "/run/app/x"},
		{"working directory by a dangling link", map[string]string{"work": "->/run/w", "run": "/"}, []specs.Mount{tmpfs("/run")}, "/work/x", "pwd", "/run/w/x"},
		{"target below one that is read-only", nil, []specs.Mount{at("linked", "/v", "ro"), at("token", "/v/sub")}, "", "cat /v/sub/token", "secret"},
	}

	for _, users := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(tt.name+", own users "+strconv.FormatBool(users), func(t *testing.T) {
				b, o := newLab(t), usual()
				if users {
					o = usersOwn()
				}

				b.sandbox(o)
				for _, readonly := range []bool{false, true} {
					s := b.spec(tt.script)
					s.Root.Readonly = readonly
					s.Mounts = append(s.Mounts, tt.mounts...)
					if tt.cwd != "" {
						s.Process.Cwd = tt.cwd
					}

					root := b.rootfs(func(upper string) { tree(t, upper, tt.image) })
					c, err := b.start(s, Held{"rootfs": root}, Request{AnyOrder: true})
					if err != nil {
						t.Fatal(err)
					}

					if out, code := c.wait(); out != tt.want+"\n" {
						t.Errorf("read-only %v: container printed %q and ended with %d, want %q", readonly, out, code, tt.want)
					}
				}
			})
		}
	}
}
