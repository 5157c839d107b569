package criu

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"crisp/runtime/ordinary"
)

const (
	// programName is looked up in searchPath unless a path is configured.
	programName = "criu"
	// searchPath is all of CRIU's environment. It starts tar for the content of
	// tmpfs file systems.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// versionTime is how long it may take to say its version.
	versionTime = 5 * time.Second
)

// Version is that of a CRIU.
type Version struct{ Major, Minor, Patch int }

// Minimum is the oldest version that is used. Older ones hang or fail on kernels
// from 6.12 on.
func Minimum() Version { return Version{4, 2, 0} }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Compare orders versions like [cmp.Compare].
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch))
}

// Program is an installed CRIU.
type Program struct {
	Path    string
	Version Version
}

// Finder finds the CRIU of a node again and again: it asks for the version only of a file
// that it has not asked yet. It is safe for concurrent use.
type Finder struct {
	path  string
	mu    sync.Mutex
	asked os.FileInfo
	found Program
}

// NewFinder returns a finder of the CRIU at path, or of the installed one if path is empty.
func NewFinder(path string) *Finder { return &Finder{path: path} }

// Find is [Find]. Of a script that runs CRIU, the version is the one that it said first.
func (f *Finder) Find(ctx context.Context) (Program, error) {
	path := located(f.path)
	info, err := os.Stat(path)
	if err != nil {
		return Find(ctx, path) // says what is wrong
	}

	f.mu.Lock()
	asked, found := f.asked, f.found
	f.mu.Unlock()
	if found.Path == path && isUnchanged(asked, info) {
		return found, nil
	}
	if found, err = Find(ctx, path); err != nil {
		return found, err
	}
	f.mu.Lock()
	f.asked, f.found = info, found
	f.mu.Unlock()
	return found, nil
}

// isUnchanged reports whether a file is the one that it was.
func isUnchanged(was, is os.FileInfo) bool {
	return os.SameFile(was, is) && was.Size() == is.Size() && was.ModTime().Equal(is.ModTime())
}

// located is the path of CRIU: the given one, or where it is installed, "" if it is not.
func located(path string) string {
	if path != "" {
		return path
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		if _, err := os.Stat(dir + "/" + programName); err == nil {
			return dir + "/" + programName
		}
	}
	return ""
}

// Find returns the CRIU at path, or the installed one if path is empty. The error
// is [ErrMissing] if there is none that can be used, and says what was found.
func Find(ctx context.Context, path string) (Program, error) {
	if path = located(path); path == "" {
		return Program{}, fmt.Errorf("%w %s or later, and it is not installed", ErrMissing, Minimum())
	}

	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	said, err := version(ctx, path)
	if err != nil {
		return Program{}, fmt.Errorf("%w %s or later; ask %s for its version: %w", ErrMissing, Minimum(), path, err)
	}

	p := Program{Path: path}
	if p.Version, err = parseVersion(said); err != nil {
		return Program{}, fmt.Errorf("%w %s or later; ask %s for its version: %w", ErrMissing, Minimum(), path, err)
	}
	if p.Version.Compare(Minimum()) < 0 {
		return Program{}, fmt.Errorf("%w %s or later, and %s is %s", ErrMissing, Minimum(), path, p.Version)
	}
	return p, nil
}

// version runs a CRIU that says its version.
func version(ctx context.Context, path string) ([]byte, error) {
	var said bytes.Buffer
	cmd := command(ctx, path, "--version")
	cmd.Stdout = &said
	if err := ordinary.Start(cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	return said.Bytes(), err
}

// parseVersion reads "Version: 4.2.1".
func parseVersion(said []byte) (v Version, err error) {
	for line := range bytes.Lines(said) {
		text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "Version: ")
		if !ok {
			continue
		}

		parts := strings.SplitN(text, ".", 3)
		for i, to := range []*int{&v.Major, &v.Minor, &v.Patch}[:len(parts)] {
			if *to, err = strconv.Atoi(parts[i]); err != nil {
				return Version{}, fmt.Errorf("malformed version %.40q", text)
			}
		}
		return v, nil
	}
	return Version{}, errors.New("it did not say any")
}

// command is CRIU with arguments: nothing of the daemon's environment, and a
// process group of its own.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + searchPath}
	cmd.Dir = "/"
	setGroup(cmd)
	return cmd
}
