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

// plugins is a directory with doubles of the CNI plugins bridge and portmap: this
// program by their names. They do what the real ones do, unless a file
// "NAME.COMMAND" beside them holds the word for a fault.
type plugins struct{ dir string }

// faultsOf are the faults of a plugin that does not do its work; what follows
// is what its double does.
var faultsOf = map[string]func(work func() ([]byte, error)){
	"fails": func(func() ([]byte, error)) {
		fmt.Print(`{"code": 100, "msg": "told to fail"}`)
		os.Exit(1)
	},
	"fails without a word": func(func() ([]byte, error)) { os.Exit(3) },
	"hangs":                func(func() ([]byte, error)) { time.Sleep(time.Hour) },
	"hangs after its work": func(work func() ([]byte, error)) {
		_, _ = work()
		time.Sleep(time.Hour)
	},
	"leaves a child": func(work func() ([]byte, error)) {
		_ = exec.Command("sleep", "3").Start()
		out, err := work()
		answer(out, err)
	},
	"is killed after its work": func(work func() ([]byte, error)) {
		_, _ = work()
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	},
	"fails after its work": func(work func() ([]byte, error)) {
		_, _ = work()
		fmt.Print(`{"code": 101, "msg": "told to fail late"}`)
		os.Exit(1)
	},
	"answers rubbish": func(work func() ([]byte, error)) {
		_, _ = work()
		fmt.Print("\x00\xff{]")
	},
	"answers nothing": func(work func() ([]byte, error)) { _, _ = work() },
	"answers without an address": func(work func() ([]byte, error)) {
		_, _ = work()
		fmt.Print(`{"cniVersion": "1.0.0"}`)
	},
	"answers without end": func(work func() ([]byte, error)) {
		_, _ = work()
		for range 64 {
			fmt.Print(strings.Repeat("a", 1<<20))
		}
	},
	"complains without end": func(work func() ([]byte, error)) {
		out, err := work()
		for range 64 {
			fmt.Fprint(os.Stderr, strings.Repeat("a", 1<<20))
		}
		answer(out, err)
	},
}

func answer(out []byte, err error) {
	os.Stdout.Write(out)
	if err != nil {
		os.Exit(1)
	}
}

// pluginMain is what this program does as a plugin, if it is one.
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
		answer(work())
	}

	return true
}

// newPlugins makes the directory, and has the daemon search it first.
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

// set makes a plugin misbehave at a command.
func (p *plugins) set(t *testing.T, plugin, command, fault string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, plugin+"."+command), []byte(fault), 0o644); err != nil {
		t.Fatal(err)
	}
}

// heal ends all faults.
func (p *plugins) heal() {
	files, _ := filepath.Glob(filepath.Join(p.dir, "*.*")) // the pattern is good
	for _, f := range files {
		_ = os.Remove(f)
	}
}
