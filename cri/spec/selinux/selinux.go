// Package selinux derives the SELinux labels of containers from the loaded
// policy.
//
// The policy (lxc_contexts) names the label of a container's process and that
// of its files. A pod has a level of its own, two categories, that separates it
// from other pods. If a policy defines no container types, containers are not
// refused: they run without labels of their own.
package selinux

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	goselinux "github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
)

const (
	configFile = "etc/selinux/config"
	// defaultPolicy is used if the configuration file names none, as in
	// libselinux.
	defaultPolicy = "targeted"
	// superType is the type of unconfined containers.
	superType = "spc_t"
	// fileRole is the role of files. The kernel would accept it for processes as
	// well.
	fileRole = "object_r"
)

var (
	// ErrNoTypes means that the policy defines no container types.
	ErrNoTypes = errors.New("the SELinux policy defines no container types")
	// ErrLabel means that a label is invalid under the policy.
	ErrLabel = errors.New("label is invalid under the SELinux policy")
	// ErrNotRelabelled is a volume whose label may not be changed.
	ErrNotRelabelled = errors.New("cannot be relabelled")
)

// label is USER:ROLE:TYPE:LEVEL.
type label struct{ user, role, kind, level string }

func (l label) String() string { return strings.Join([]string{l.user, l.role, l.kind, l.level}, ":") }

func parse(text string) (label, bool) {
	f := strings.SplitN(text, ":", 4)
	if len(f) != 4 {
		return label{}, false
	}
	return label{f[0], f[1], f[2], f[3]}, true
}

// Policy is the part of the loaded policy about containers.
type Policy struct {
	process, file label
	// canonical returns a label as the kernel writes it, or [ErrLabel].
	canonical func(string) (string, error)
}

// Load reads the policy's container types below root.
func Load(root fs.FS) (*Policy, error) { return load(root, canonical) }

func load(root fs.FS, canonical func(string) (string, error)) (*Policy, error) {
	config, err := fs.ReadFile(root, configFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoTypes, err)
	} else if err != nil {
		return nil, fmt.Errorf("determine the loaded SELinux policy: %w", err)
	}

	name := cmp.Or(settings(config)["SELINUXTYPE"], defaultPolicy)
	contexts, err := fs.ReadFile(root, "etc/selinux/"+name+"/contexts/lxc_contexts")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoTypes, err)
	} else if err != nil {
		return nil, fmt.Errorf("read container types of SELinux policy %s: %w", name, err)
	}

	said := settings(contexts)
	p := &Policy{canonical: canonical}
	for key, to := range map[string]*label{"process": &p.process, "file": &p.file} {
		ok := false
		if *to, ok = parse(said[key]); !ok {
			return nil, fmt.Errorf("%w: lxc_contexts of %s has %s = %q", ErrNoTypes, name, key, said[key])
		}

		if _, err := canonical(to.String()); errors.Is(err, ErrLabel) {
			return nil, fmt.Errorf("%w: %w", ErrNoTypes, err)
		} else if err != nil {
			return nil, err
		}
	}

	return p, nil
}

// settings reads lines such as `key = "value"`.
func settings(file []byte) map[string]string {
	all := map[string]string{}
	for line := range bytes.Lines(file) {
		if key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "="); ok && !strings.HasPrefix(key, "#") {
			all[strings.TrimSpace(key)] = strings.Trim(value, " \t\"")
		}
	}
	return all
}

// canonical asks the kernel for the canonical form of a label.
func canonical(text string) (string, error) {
	if strings.IndexByte(text, 0) >= 0 {
		return "", fmt.Errorf("%w: %q", ErrLabel, text)
	}
	out, err := goselinux.CanonicalizeContext(text)
	return answer(text, out, err)
}

// answer interprets the kernel's reply about a label. If the policy does not
// allow crisp to ask, an invalid label is only detected when it is used.
func answer(text, out string, err error) (string, error) {
	switch {
	case err == nil:
		return strings.TrimRight(out, "\x00"), nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return text, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFBIG), errors.Is(err, unix.ERANGE):
		return "", fmt.Errorf("%w: %q: %w", ErrLabel, text, err)
	default:
		return "", fmt.Errorf("ask the kernel about the SELinux label %q: %w", text, err)
	}
}

// Reach is the access that a container's processes are meant to have.
type Reach int

const (
	// Pod: only to its pod.
	Pod Reach = iota
	// Node: to what it shares with the node, such as its processes. It is
	// unconfined unless it requests a type.
	Node
	// Everything: it is privileged, and unconfined whatever it requests.
	Everything
)

// Labels returns the labels of a container in a pod of the given level that
// requests o, which may be nil. What o leaves open is taken from the policy.
func (p *Policy) Labels(o *runtimeapi.SELinuxOption, podLevel string, reach Reach) (spec.Labels, error) {
	if strings.Contains(o.GetUser()+o.GetRole()+o.GetType(), ":") {
		return spec.Labels{}, fmt.Errorf("%w: a colon in %v", ErrLabel, o)
	}
	if o.GetRole() == fileRole {
		return spec.Labels{}, fmt.Errorf("%w: %s is not a role for processes", ErrLabel, fileRole)
	}

	process, file := p.process, p.file
	process.level = cmp.Or(o.GetLevel(), podLevel)
	process.user = cmp.Or(o.GetUser(), process.user)
	process.role = cmp.Or(o.GetRole(), process.role)
	process.kind = cmp.Or(o.GetType(), process.kind)
	file.user, file.level = cmp.Or(o.GetUser(), file.user), process.level

	// The request has to be valid even if it is not used.
	var out spec.Labels
	var err, ferr error
	out.Process, err = p.canonical(process.String())
	out.Mount, ferr = p.canonical(file.String())
	if err := errors.Join(err, ferr); err != nil {
		return spec.Labels{}, err
	}

	if reach == Everything || reach == Node && o.GetType() == "" {
		super := p.process
		super.kind = superType
		out.Process, err = p.canonical(super.String())
	}

	return out, err
}

// Shared returns the label of files for containers of any level.
func (p *Policy) Shared() string { return p.file.String() }

// Level returns the level of a label.
func Level(text string) string {
	l, _ := parse(text)
	return l.level
}
