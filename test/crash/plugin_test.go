//go:build crash

package crash

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit/lab"
)

// plugins is a directory with fakes of the CNI plugins bridge and portmap, which
// are links to this program. They call the real ones, unless a file "NAME.COMMAND"
// next to them names a fault, optionally followed by " times N".
type plugins struct{ dir string }

// faultsOf are the faults of a plugin, with what its fake does; work calls the
// real one.
var faultsOf = map[string]func(work func() ([]byte, error)){
	"error": func(func() ([]byte, error)) {
		fmt.Print(`{"code": 100, "msg": "fails on request"}`)
		os.Exit(1)
	},
	"exits without output": func(func() ([]byte, error)) { os.Exit(3) },
	"hangs":                func(func() ([]byte, error)) { time.Sleep(time.Hour) },
	"hangs after its work": func(work func() ([]byte, error)) {
		_, _ = work()
		time.Sleep(time.Hour)
	},
	"leaves a child process": func(work func() ([]byte, error)) {
		_ = exec.Command("sleep", "3").Start()
		out, err := work()
		reply(out, err)
	},
	"killed after its work": func(work func() ([]byte, error)) {
		_, _ = work()
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	},
	"error after its work": func(work func() ([]byte, error)) {
		_, _ = work()
		fmt.Print(`{"code": 101, "msg": "fails on request, late"}`)
		os.Exit(1)
	},
	"invalid output": func(work func() ([]byte, error)) {
		_, _ = work()
		fmt.Print("\x00\xff{]")
	},
	"empty output": func(work func() ([]byte, error)) { _, _ = work() },
	"no address in output": func(work func() ([]byte, error)) {
		_, _ = work()
		fmt.Print(`{"cniVersion": "1.0.0"}`)
	},
	"unbounded stdout": func(work func() ([]byte, error)) {
		_, _ = work()
		for range 64 {
			fmt.Print(strings.Repeat("a", 1<<20))
		}
	},
	"unbounded stderr": func(work func() ([]byte, error)) {
		out, err := work()
		for range 64 {
			fmt.Fprint(os.Stderr, strings.Repeat("a", 1<<20))
		}
		reply(out, err)
	},
}

// reply prints the output of the real plugin and exits as it did.
func reply(out []byte, err error) {
	os.Stdout.Write(out)
	if err != nil {
		os.Exit(1)
	}
}

// pluginMain runs this program as a plugin, and returns false if it is not one.
func pluginMain() bool {
	name, command := filepath.Base(os.Args[0]), os.Getenv("CNI_COMMAND")
	if command == "" {
		return false
	}

	dir := filepath.Dir(os.Args[0])
	file := filepath.Join(dir, name+"."+command)
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		os.Exit(4)
	}

	work := func() ([]byte, error) {
		cmd := exec.Command(filepath.Join(dir, "real", name))
		cmd.Stdin, cmd.Stderr = strings.NewReader(string(in)), os.Stderr
		return cmd.Output()
	}

	fault, err := os.ReadFile(file)
	word, times, counted := strings.Cut(string(fault), " times ")
	if left, err := strconv.Atoi(times); counted && err == nil {
		if next := fmt.Appendf(nil, "%s times %d", word, left-1); left > 1 {
			_ = os.WriteFile(file, next, 0o644)
		} else {
			_ = os.Remove(file)
		}
	}

	if do := faultsOf[word]; err == nil && do != nil {
		do(work)
	} else {
		reply(work())
	}

	return true
}

// newPlugins makes the directory, and an option that makes the daemon use it.
func newPlugins(t *testing.T) (*plugins, func(*lab.Options)) {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	real, err := cache.Plugins()
	if err != nil {
		t.Fatal(err)
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	p := &plugins{t.TempDir()}
	if err := os.Symlink(real, filepath.Join(p.dir, "real")); err != nil {
		t.Fatal(err)
	}

	for _, name := range []string{"bridge", "portmap"} {
		if err := os.Symlink(self, filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
	}

	return p, func(o *lab.Options) { o.PluginDir = p.dir }
}

// set makes a plugin fail at a command.
func (p *plugins) set(t *testing.T, plugin, command, fault string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, plugin+"."+command), []byte(fault), 0o644); err != nil {
		t.Fatal(err)
	}
}

// heal removes all faults.
func (p *plugins) heal() {
	files, _ := filepath.Glob(filepath.Join(p.dir, "*.*")) // the pattern is valid
	for _, f := range files {
		_ = os.Remove(f)
	}
}
