package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// packages is a directory in which Debian packages are unpacked one over the
// other, without being installed.
type packages struct {
	debs, root string
	unpacked   map[string]bool
	// apt are arguments for apt's programs.
	apt []string
	// updated is set once the lists of packages were fetched.
	updated bool
}

// openPackages opens or creates a directory for packages of an architecture.
func openPackages(dir, arch string) (*packages, error) {
	p := &packages{debs: filepath.Join(dir, "debs"), root: filepath.Join(dir, "root"), unpacked: map[string]bool{}}
	for _, d := range []string{p.debs, p.root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}

	if arch == runtime.GOARCH {
		return p, nil
	}
	var err error
	p.apt, err = foreignLists(filepath.Join(dir, "apt"), arch)
	return p, err
}

// foreignLists keeps lists of the packages of another architecture in dir, and
// returns the arguments to use them: the machine's own stay as they are.
func foreignLists(dir, arch string) ([]string, error) {
	state := filepath.Join(dir, "state")
	for _, d := range []string{filepath.Join(state, "lists", "partial"), filepath.Join(dir, "cache", "archives", "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}

	status := filepath.Join(state, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}

	return []string{
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch,
		"-o", "Dir::State=" + state, "-o", "Dir::State::status=" + status, "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
	}, nil
}

// add downloads and unpacks packages and the libraries they depend on, and so on.
func (p *packages) add(ctx context.Context, names ...string) error {
	for {
		names = slices.DeleteFunc(names, func(name string) bool { return p.unpacked[name] })
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) == 0 {
			return nil
		}

		if err := p.fetch(ctx, names); err != nil {
			return err
		}
		for _, name := range names {
			p.unpacked[name] = true
			if err := p.unpack(ctx, name); err != nil {
				return err
			}
		}

		var err error
		if names, err = p.libraryDependencies(ctx, names); err != nil {
			return err
		}
	}
}

// fetch downloads missing packages.
func (p *packages) fetch(ctx context.Context, names []string) error {
	var missing []string
	for _, name := range names {
		debs, err := p.files(name)
		if err != nil {
			return err
		}
		if len(debs) == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}

	if err := p.download(ctx, missing); err != nil {
		return fmt.Errorf("download packages %s: %w", strings.Join(missing, " "), err)
	}
	return nil
}

// files are the downloaded versions of a package.
func (p *packages) files(name string) ([]string, error) {
	return filepath.Glob(filepath.Join(p.debs, name+"_*.deb"))
}

func (p *packages) unpack(ctx context.Context, name string) error {
	debs, err := p.files(name)
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("unpack package %s: want one file in %s, have %d", name, p.debs, len(debs))
	}
	return run(ctx, "", "dpkg-deb", "--extract", debs[0], p.root)
}

// download fetches packages, all by one call: apt-get spends most of its time
// opening its cache. If that fails it updates the package lists first: a fresh
// machine has none, and old ones refer to versions that no longer exist.
func (p *packages) download(ctx context.Context, names []string) error {
	get := slices.Concat(p.apt, []string{"-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"}, names)
	err := run(ctx, p.debs, "apt-get", get...)
	if err == nil || p.updated {
		return err
	}
	p.updated = true
	lists := append(slices.Clone(p.apt), "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "update")
	if update := run(ctx, "", "apt-get", lists...); update != nil {
		return fmt.Errorf("%w; and its lists cannot be brought up to date, which takes root: %w", err, update)
	}
	return run(ctx, p.debs, "apt-get", get...)
}

// libraryDependencies lists the packages that the given ones depend on and that
// contain libraries, judging by their names. All are queried by one call:
// apt-cache spends most of its time opening its cache.
func (p *packages) libraryDependencies(ctx context.Context, names []string) ([]string, error) {
	args := slices.Concat(p.apt, []string{"depends", "--important"}, names)
	out, err := exec.CommandContext(ctx, "apt-cache", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("list dependencies of packages %s: %w", strings.Join(names, " "), err)
	}
	var libraries []string
	for line := range strings.Lines(string(out)) {
		kind, dep, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if (kind == "Depends" || kind == "PreDepends") && (strings.HasPrefix(dep, "lib") || strings.HasPrefix(dep, "zlib")) {
			libraries = append(libraries, dep)
		}
	}
	return libraries, nil
}

// install copies a program from the packages into t, with its dynamic linker
// and every library it needs.
func (p *packages) install(t tree, program, as string) error {
	from, err := p.find(program)
	if err != nil {
		return err
	}
	if err := t.copy(as, 0o755, from); err != nil {
		return err
	}
	return p.installLibraries(t, from)
}

func (p *packages) installLibraries(t tree, binary string) error {
	needed, linker, err := dynamicNeeds(binary)
	if err != nil {
		return fmt.Errorf("read the libraries of %s: %w", binary, err)
	}

	if linker != "" {
		from, err := p.find(linker)
		if err != nil {
			return err
		}
		if err := t.copy(linker, 0o755, from); err != nil {
			return err
		}
	}

	for _, soname := range needed {
		if err := p.installLibrary(t, soname); err != nil {
			return err
		}
	}

	return nil
}

func (p *packages) installLibrary(t tree, soname string) error {
	var places []string
	for _, dir := range []string{"/lib", "/lib/*-linux-gnu*"} {
		places = append(places, filepath.Join(dir, soname))
	}

	from, err := p.find(places...)
	if err != nil {
		return err
	}

	name := filepath.Join("/lib", filepath.Base(filepath.Dir(from)), soname)
	if _, ok := t[name]; ok {
		return nil
	}

	if err := t.copy(name, 0o644, from); err != nil {
		return err
	}
	return p.installLibraries(t, from)
}

// find returns the first file that matches one of the patterns below the root
// or, as in Debian 13 and later, below /usr.
func (p *packages) find(patterns ...string) (string, error) {
	for _, pattern := range patterns {
		for _, above := range []string{p.root, filepath.Join(p.root, "usr")} {
			matches, err := filepath.Glob(filepath.Join(above, pattern))
			if err != nil {
				return "", err
			}

			slices.Sort(matches)
			for _, match := range matches {
				if target, err := p.follow(match); err == nil {
					return target, nil
				}
			}
		}
	}
	return "", fmt.Errorf("find %s in the packages: %w", strings.Join(patterns, " or "), os.ErrNotExist)
}

// follow resolves symbolic links as if the root were /.
func (p *packages) follow(name string) (string, error) {
	for range 10 {
		target, err := os.Readlink(name)
		if err != nil {
			_, err := os.Stat(name)
			return name, err
		}
		if filepath.IsAbs(target) {
			name = filepath.Join(p.root, target)
		} else {
			name = filepath.Join(filepath.Dir(name), target)
		}
	}
	return "", errors.New("too many links")
}

// dynamicNeeds reads the dependencies of a dynamic executable or library: its
// libraries, and its linker.
func dynamicNeeds(binary string) (libraries []string, linker string, err error) {
	f, err := elf.Open(binary)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()

	libraries, err = f.ImportedLibraries()
	if err != nil {
		return nil, "", err
	}

	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP {
			name := make([]byte, prog.Filesz)
			if _, err := prog.ReadAt(name, 0); err != nil {
				return nil, "", err
			}
			linker = string(bytes.TrimRight(name, "\x00"))
		}
	}

	return libraries, linker, nil
}

// run runs a command in dir; its error includes the output.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
