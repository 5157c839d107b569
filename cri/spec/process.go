package spec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	defaultPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultUmask = 0o022
	// maxPath is the length of the longest path that the kernel accepts.
	maxPath = 4095
)

// process fills in the process: user, arguments, working directory,
// environment.
func (b *builder) process() error {
	p := b.out.Spec.Process
	if err := b.checkCounts(); err != nil {
		return err
	}

	args, err := b.args()
	if err != nil {
		return err
	}

	env, err := b.environ()
	if err != nil {
		return err
	}

	cwd, err := workingDir(b.Config.GetWorkingDir(), b.Image.WorkingDir)
	if err != nil {
		return err
	}

	umask := uint32(defaultUmask)
	p.Args, p.Env, p.Cwd = args, env, cwd
	p.User = specs.User{
		UID: b.User.UID, GID: b.User.GID, Umask: &umask,
		AdditionalGids: slices.Clone(b.User.Groups),
	}
	if err := checkIDs(b.out.Spec); err != nil {
		return err
	}
	return CheckArguments(p, b.Host)
}

// args applies Kubernetes' rule: a command replaces both the image's entrypoint
// and its arguments, arguments alone replace only the latter.
func (b *builder) args() ([]string, error) {
	command, args := b.Config.GetCommand(), b.Config.GetArgs()
	if len(command) == 0 {
		// Docker's tools remove an entrypoint by setting it to one empty word.
		if e := b.Image.Entrypoint; len(e) != 1 || e[0] != "" {
			command = e
		}
		if len(args) == 0 {
			args = b.Image.Cmd
		}
	}

	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, invalid("no command specified, neither by the container nor by its image")
	}
	return all, nil
}

// environ merges the environment: defaults, the image's, the host name, the
// container's. Of two equal names the later one wins.
func (b *builder) environ() ([]string, error) {
	e := environment{at: map[string]int{}}
	e.set("PATH", defaultPath)
	if b.Config.GetTty() {
		e.set("TERM", "xterm")
	}

	for _, kv := range b.Image.Env {
		// Some images have variables without a name, which mean nothing to a program.
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			e.set(name, value)
		}
	}

	if b.Hostname != "" {
		e.set("HOSTNAME", b.Hostname)
	}
	for _, kv := range b.Config.GetEnvs() {
		if kv.GetKey() == "" || strings.Contains(kv.GetKey(), "=") {
			return nil, invalid("environment variable with name %q", shorten(kv.GetKey()))
		}
		e.set(kv.GetKey(), string(kv.GetValue()))
	}

	if e.get("HOME") == "" {
		e.set("HOME", b.User.home())
	}
	return e.list, nil
}

// environment is an ordered set of variables.
type environment struct {
	list []string // name=value
	at   map[string]int
}

func (e *environment) get(name string) string {
	if i, ok := e.at[name]; ok {
		return e.list[i][len(name)+1:]
	}
	return ""
}

// set adds a variable, or changes it in place.
func (e *environment) set(name, value string) {
	kv := name + "=" + value
	if i, ok := e.at[name]; ok {
		e.list[i] = kv
		return
	}
	e.at[name] = len(e.list)
	e.list = append(e.list, kv)
}

// workingDir chooses the working directory. Paths through /proc/PID could lead
// to directories outside the container's root (CVE-2024-21626) and are rejected
// early; the started process checks where it arrived all the same.
func workingDir(configured, image string) (string, error) {
	dir := configured
	if dir == "" {
		dir = image
	}

	dir = path.Clean("/" + dir)
	if strings.ContainsRune(dir, 0) {
		return "", invalid("NUL byte in working directory %q", shorten(dir))
	}
	if len(dir) > maxPath {
		return "", invalid("working directory of %d bytes, at most %d are allowed", len(dir), maxPath)
	}

	if rest, ok := strings.CutPrefix(dir, "/proc/"); ok {
		first, _, _ := strings.Cut(rest, "/")
		if first == "self" || first == "thread-self" || isDigits(first) {
			return "", invalid("working directory %q leads through /proc/PID", dir)
		}
	}

	return dir, nil
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
