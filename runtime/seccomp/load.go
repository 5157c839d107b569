package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/host"
	"crisp/runtime/rootpath"
)

// maxFile is the largest profile that is read.
const maxFile = 1 << 20

// fileProfile is a profile in a file: in the form of the OCI runtime-spec, or
// Docker's, which adds conditions.
type fileProfile struct {
	specs.LinuxSeccomp
	ArchMap  []archEntry `json:"archMap"`
	Syscalls []fileEntry `json:"syscalls"`
}

type archEntry struct {
	Architecture     specs.Arch   `json:"architecture"`
	SubArchitectures []specs.Arch `json:"subArchitectures"`
}

type fileEntry struct {
	specs.LinuxSyscall
	Name     string  `json:"name"`
	Includes entryIf `json:"includes"`
	Excludes entryIf `json:"excludes"`
}

// entryIf is the condition of an entry on containers and machines.
type entryIf struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"`
	MinKernel string   `json:"minKernel"`
}

// Load reads the profile in a file of the host, in the form of the OCI
// runtime-spec or Docker's. A profile that does not compile is an error.
// Entries that depend on capabilities are resolved for a container without any.
func Load(path string) (*specs.LinuxSeccomp, error) { return LoadFor(path, nil) }

// LoadFor is [Load] for a container with the given bounding set of
// capabilities.
func LoadFor(path string, caps []string) (*specs.LinuxSeccomp, error) {
	data, err := readProfile(path)
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}

	kernel, err := host.Kernel()
	if err != nil {
		return nil, err
	}

	p, err := parseProfile(data, caps, kernel)
	if err == nil {
		_, err = Compile(p)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
	}

	return p, nil
}

func readProfile(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: path %q is not absolute", ErrInvalid, path)
	}
	data, err := rootpath.ReadNodeFile(path, maxFile)
	if errors.Is(err, rootpath.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return data, err
}

func parseProfile(data []byte, caps []string, kernel host.Version) (*specs.LinuxSeccomp, error) {
	var file fileProfile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}

	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		return nil, err
	}

	p := file.LinuxSeccomp
	for _, e := range file.ArchMap {
		if e.Architecture == abis[0].arch {
			p.Architectures = append(append(p.Architectures, e.Architecture), e.SubArchitectures...)
		}
	}

	for i, e := range file.Syscalls {
		applies, err := e.applies(caps, kernel)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}

		if !applies {
			continue
		}
		if e.Name != "" {
			e.Names = append(e.Names, e.Name)
		}
		p.Syscalls = append(p.Syscalls, e.LinuxSyscall)
	}

	return &p, nil
}

// applies reports whether all includes of the entry are met and none of its excludes.
func (e fileEntry) applies(caps []string, kernel host.Version) (bool, error) {
	includesKernel, err := atLeast(kernel, e.Includes.MinKernel)
	if err != nil {
		return false, err
	}

	excludesKernel, err := atLeast(kernel, e.Excludes.MinKernel)
	if err != nil {
		return false, err
	}

	has := func(name string) bool { return slices.Contains(caps, name) }
	switch {
	case len(e.Includes.Arches) > 0 && !slices.Contains(e.Includes.Arches, runtime.GOARCH),
		slices.Contains(e.Excludes.Arches, runtime.GOARCH),
		slices.ContainsFunc(e.Includes.Caps, func(name string) bool { return !has(name) }),
		slices.ContainsFunc(e.Excludes.Caps, has),
		!includesKernel,
		e.Excludes.MinKernel != "" && excludesKernel:
		return false, nil
	}

	return true, nil
}

// atLeast reports whether the kernel is at least a version, "4.8". Any kernel
// meets an empty version.
func atLeast(kernel host.Version, version string) (bool, error) {
	if version == "" {
		return true, nil
	}
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false, fmt.Errorf("%w: kernel version %q", ErrInvalid, version)
	}
	return kernel.AtLeast(major, minor), nil
}
