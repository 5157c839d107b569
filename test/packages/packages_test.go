package packages

import (
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

var (
	programs    = []string{"/usr/bin/crisp", "/usr/bin/crisp-keeper", "/usr/lib/cni/crisp-net"}
	units       = []string{"/usr/lib/systemd/system/crisp.service", "/usr/lib/systemd/system/crisp-keeper.service", "/usr/lib/systemd/system/crisp-keeper.socket"}
	completions = []string{
		"/usr/share/bash-completion/completions/crisp", "/usr/share/fish/vendor_completions.d/crisp.fish",
		"/usr/share/zsh/site-functions/_crisp", "/usr/share/zsh/vendor-completions/_crisp",
	}
	kept        = []string{"/run/systemd/system/crisp-keeper.service", "/run/systemd/system/crisp-keeper.socket"}
	directories = []string{"/etc/cni/net.d", "/opt/cni/bin", "/etc/crisp/certs.d", "/etc/crisp/config.d"}
)

// arch is an architecture that there are packages for, by its name in each
// format.
type arch struct {
	goarch, rpm string
	machine     elf.Machine
}

func arches() []arch {
	return []arch{{"amd64", "x86_64", elf.EM_X86_64}, {"arm64", "aarch64", elf.EM_AARCH64}}
}

// find returns the one package whose name is of a pattern.
func find(t *testing.T, pattern string) string {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	dir, err := cache.Packages()
	if errors.Is(err, lab.ErrNotMade) {
		testkit.Skip(t, "the build", err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}

	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		t.Fatalf("of %s there are %q, %v", pattern, files, err)
	}
	return files[0]
}

// TestSameFiles compares the content of the three formats, for each
// architecture.
func TestSameFiles(t *testing.T) {
	for _, p := range arches() {
		t.Run(p.goarch, func(t *testing.T) {
			top := t.TempDir()
			deb, rpm, tar := filepath.Join(top, "deb"), filepath.Join(top, "rpm"), filepath.Join(top, "tar")
			shell(t, `mkdir "$2" && dpkg-deb --extract "$1" "$2"`, find(t, "crisp_*_"+p.goarch+".deb"), deb)
			shell(t, `mkdir "$2" && rpm2cpio "$1" | cpio -idm --quiet -D "$2"`, find(t, "crisp-*."+p.rpm+".rpm"), rpm)
			shell(t, `mkdir "$2" && tar -xzf "$1" --strip-components=1 -C "$2"`, find(t, "crisp_*_linux_"+p.goarch+".tar.gz"), tar)

			want := files(t, tar)
			for form, dir := range map[string]string{"deb": deb, "rpm": rpm} {
				if got := files(t, dir); !maps.Equal(got, want) {
					t.Errorf("the %s has\n%s\nand the tarball\n%s", form, list(got), list(want))
				}
			}

			for _, name := range programs {
				isStatic(t, tar+name, p.machine)
			}
			for _, name := range completions {
				if data, err := os.ReadFile(tar + name); err != nil || !strings.Contains(string(data), "__complete") {
					t.Errorf("no completion in %s, error %v", name, err)
				}
			}
		})
	}
}

// shell runs a script with arguments.
func shell(t *testing.T, script string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// files lists what is in a tree, but for what belongs to one form of package.
func files(t *testing.T, top string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, top)
		switch {
		case err != nil || d.Name() == "copyright" || strings.HasPrefix(d.Name(), "changelog") || d.Name() == "LICENSE":
			return err
		case strings.Contains(name, "/lintian") || strings.HasPrefix(name, "/usr/share/licenses"):
			return nil
		case name == "/install" || name == "/README" || name == "":
			return nil
		}

		info, err := d.Info()
		if err != nil || d.IsDir() {
			all[name] = info.Mode().String()
			return err
		}

		data, err := os.ReadFile(path)
		all[name] = fmt.Sprintf("%v %x", info.Mode(), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	return all
}

func list(files map[string]string) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&text, "%s %s\n", name, files[name])
	}
	return text.String()
}

func isStatic(t *testing.T, program string, machine elf.Machine) {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	if f.Machine != machine {
		t.Errorf("%s is for %v, want %v", program, f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s wants a dynamic linker", program)
		}
	}
}

// own is the form for this machine: as find wants it.
func own(t *testing.T, form func(arch) string) string {
	t.Helper()
	for _, p := range arches() {
		if p.goarch == runtime.GOARCH {
			return find(t, form(p))
		}
	}
	testkit.Skip(t, "amd64", "there are no packages for "+runtime.GOARCH)
	return ""
}

func TestRPM(t *testing.T) {
	r := newRoot(t)
	file := r.bring(own(t, func(p arch) string { return "crisp-*." + p.rpm + ".rpm" }))
	life(t, r, steps{
		install: func() { r.run("rpm", "--install", "--nodeps", file) },
		upgrade: func() { r.run("rpm", "--upgrade", "--force", "--nodeps", file) },
		remove:  func() { r.run("rpm", "--erase", "crisp") },
		restart: "try-restart crisp.service",
	})
	r.has(false, "/etc/crictl.yaml")
	if left := r.run("sh", "-c", "rpm --query --all"); left != "" {
		t.Errorf("rpm still knows %q", left)
	}
}

func TestTarball(t *testing.T) {
	r := newRoot(t)
	file := r.bring(own(t, func(p arch) string { return "crisp_*_linux_" + p.goarch + ".tar.gz" }))
	r.run("sh", "-ec", "mkdir /brought/crisp && tar -xzf "+file+" --strip-components=1 -C /brought/crisp")
	install := func() { r.run("/brought/crisp/install") }
	life(t, r, steps{
		install: install, upgrade: install,
		remove:  func() { r.run("/brought/crisp/install", "--remove") },
		restart: "restart crisp.service",
	})

	r.run("sh", "-ec", "mkdir /image && DESTDIR=/image /brought/crisp/install")
	r.has(true, "/image/usr/bin/crisp", "/image/etc/crisp/config.toml", "/image/etc/cni/net.d")
	if calls := r.calls(); calls != "" {
		t.Errorf("an installation into another root called systemctl %q", calls)
	}
}

// steps are the commands for a package format.
type steps struct {
	install, upgrade, remove func()
	// restart is the systemctl call of an upgrade.
	restart string
}

// life installs, upgrades and removes a package on a node.
func life(t *testing.T, r *root, do steps) {
	t.Helper()
	do.install()
	r.has(true, slices.Concat(programs, units, directories)...)
	wantCalls(t, r, "daemon-reload", "enable crisp-keeper.socket crisp.service", "start crisp-keeper.socket")

	if text := r.read("/etc/crictl.yaml"); !strings.Contains(text, "unix:///run/crisp/crisp.sock") {
		t.Errorf("/etc/crictl.yaml says %q", text)
	}
	if version := r.run("/usr/bin/crisp", "version"); !strings.HasPrefix(version, "crisp ") {
		t.Errorf("the version is %q", version)
	}

	r.write("/etc/crisp/config.toml", "# changed\n")
	do.upgrade()
	wantCalls(t, r, "daemon-reload", do.restart)
	if text := r.read("/etc/crisp/config.toml"); text != "# changed\n" {
		t.Errorf("an upgrade left %q of the configuration", text)
	}

	r.write("/keeper-is-active", "")
	do.remove()
	wantCalls(t, r, "stop crisp.service", "disable crisp.service crisp-keeper.socket", "daemon-reload")
	r.has(true, kept...) // for the containers
	r.has(false, slices.Concat(programs, units)...)

	do.install()
	r.has(false, kept...)
	if err := os.Remove(r.dir + "/keeper-is-active"); err != nil {
		t.Fatal(err)
	}

	r.calls()
	do.remove()
	wantCalls(t, r, "stop crisp.service", "stop crisp-keeper.socket")
	r.has(false, slices.Concat(kept, programs, units)...)
}

// wantCalls checks that systemctl was called as expected, in this order.
func wantCalls(t *testing.T, r *root, want ...string) {
	t.Helper()
	calls := r.calls()
	rest := calls
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Errorf("systemctl was called with\n%swithout %q, or not in this order: %q", calls, w, want)
			return
		}
		rest = after
	}
}
