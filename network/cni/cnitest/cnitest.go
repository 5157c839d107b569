// Package cnitest provides CNI plugins that note how they are called and that
// fail or hang on demand.
//
// The plugins are links to the test's own binary, so a test package that uses
// them must call [Main] from its TestMain.
package cnitest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Plugins is a folder of plugins.
type Plugins struct {
	Dir string
	t   testing.TB
	// seen is how much of the notes was returned.
	seen int64
}

// Call is a call of a plugin as the plugin saw it.
type Call struct {
	Plugin, Command string
	// Env holds the CNI_ variables.
	Env map[string]string
	// Conf is what came on standard input.
	Conf map[string]any
}

// New makes a folder with plugins of the given names.
func New(t testing.TB, names ...string) *Plugins {
	t.Helper()
	p := &Plugins{Dir: t.TempDir(), t: t}
	for _, name := range names {
		p.Install(name)
	}
	return p
}

// Install adds a plugin.
func (p *Plugins) Install(name string) {
	p.t.Helper()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(p.Dir, name))
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// Remove takes a plugin away.
func (p *Plugins) Remove(name string) {
	p.t.Helper()
	if err := os.Remove(filepath.Join(p.Dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

// Fail makes a plugin answer a command with an error until [Plugins.Heal].
func (p *Plugins) Fail(name, command string, code uint, msg string) {
	p.t.Helper()
	answer, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "code": code, "msg": msg})
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(name+".fail."+command, answer)
}

// Hang makes a plugin never answer a command until [Plugins.Heal]. It waits
// in a child process that holds its output open.
func (p *Plugins) Hang(name, command string) {
	p.t.Helper()
	p.write(name+".hang."+command, nil)
}

// Heal undoes Fail and Hang.
func (p *Plugins) Heal(name, command string) {
	p.t.Helper()
	for _, how := range []string{".fail.", ".hang."} {
		err := os.Remove(filepath.Join(p.Dir, name+how+command))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.t.Fatal(err)
		}
	}
}

// Answer replaces what a plugin answers to ADD.
func (p *Plugins) Answer(name, answer string) {
	p.t.Helper()
	p.write(name+".answer", []byte(answer))
}

func (p *Plugins) write(name string, data []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.Dir, name), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// Calls returns the calls since it last did.
func (p *Plugins) Calls() []Call {
	p.t.Helper()
	f, err := os.Open(filepath.Join(p.Dir, "calls"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(p.seen, io.SeekStart); err != nil {
		p.t.Fatal(err)
	}
	var calls []Call
	decoder := json.NewDecoder(f)
	for {
		var call Call
		err := decoder.Decode(&call)
		if err == io.EOF {
			break
		}
		if err != nil {
			p.t.Fatal(err)
		}
		calls = append(calls, call)
	}
	p.seen += decoder.InputOffset()
	return calls
}

// Summary returns the calls as "plugin COMMAND".
func (p *Plugins) Summary() []string {
	p.t.Helper()
	var list []string
	for _, call := range p.Calls() {
		list = append(list, call.Plugin+" "+call.Command)
	}
	return list
}

// Main runs the plugin, and does not return, if the process is one.
func Main() {
	if os.Getenv("CNI_COMMAND") == "" {
		return
	}
	if err := plugin(filepath.Dir(os.Args[0]), filepath.Base(os.Args[0])); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func plugin(dir, name string) error {
	call := Call{Plugin: name, Command: os.Getenv("CNI_COMMAND"), Env: map[string]string{}}
	for _, kv := range os.Environ() {
		if key, value, _ := strings.Cut(kv, "="); strings.HasPrefix(key, "CNI_") {
			call.Env[key] = value
		}
	}
	if err := json.NewDecoder(os.Stdin).Decode(&call.Conf); err != nil {
		return err
	}
	if err := note(filepath.Join(dir, "calls"), call); err != nil {
		return err
	}
	if answer, err := os.ReadFile(filepath.Join(dir, name+".fail."+call.Command)); err == nil {
		os.Stdout.Write(answer)
		os.Exit(1)
	}
	if _, err := os.Stat(filepath.Join(dir, name+".hang."+call.Command)); err == nil {
		sleep := exec.Command("sleep", "1000")
		sleep.Stdout = os.Stdout
		return sleep.Run()
	}
	if call.Command != "ADD" {
		return nil
	}
	answer, err := os.ReadFile(filepath.Join(dir, name+".answer"))
	if err != nil {
		answer, err = defaultAnswer(call)
	}
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(answer)
	return err
}

// note appends a call by a single write, so that plugins that run at the same
// time do not mix theirs.
func note(path string, call Call) error {
	line, err := json.Marshal(call)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// defaultAnswer passes on the previous plugin's answer, or makes up one.
func defaultAnswer(call Call) ([]byte, error) {
	if prev, ok := call.Conf["prevResult"]; ok {
		return json.Marshal(prev)
	}
	return json.Marshal(map[string]any{
		"cniVersion": call.Conf["cniVersion"],
		"interfaces": []any{
			map[string]any{"name": "vethfake"},
			map[string]any{"name": call.Env["CNI_IFNAME"], "sandbox": call.Env["CNI_NETNS"]},
		},
		"ips": []any{
			map[string]any{"address": "10.1.2.3/24", "interface": 1},
			map[string]any{"address": "fd00::3/64", "interface": 1},
		},
	})
}
