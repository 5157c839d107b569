// Package cnitest provides CNI plugins for tests, which record their calls and
// fail or hang on demand.
package cnitest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script is a plugin. It records a call by a single write, so that concurrent
// calls are not mixed up.
const script = `#!/bin/sh
dir=${0%/*} name=${0##*/}
IFS= read -r conf
lock=
[ -e /proc/$$/fd/3 ] && lock=held
printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$lock" "$name" "$CNI_COMMAND" "$CNI_CONTAINERID" \
	"$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$CNI_PATH" "$conf" >>"$dir/calls"
if [ -e "$dir/$name.fail.$CNI_COMMAND" ]; then
	cat "$dir/$name.fail.$CNI_COMMAND"
	exit 1
fi
while [ -e "$dir/$name.hang.$CNI_COMMAND" ]; do
	sleep 0.05
done
if [ "$CNI_COMMAND" != ADD ]; then
	exit 0
fi
if [ -e "$dir/$name.answer" ]; then
	cat "$dir/$name.answer"
	exit 0
fi
version=${conf#*'"cniVersion":"'} version=${version%%'"'*}
printf '{"cniVersion":"%s","interfaces":[{"name":"vethfake"},{"name":"%s","sandbox":"%s"}],' "$version" "$CNI_IFNAME" "$CNI_NETNS"
printf '"ips":[{"version":"4","address":"10.1.2.3/24","interface":1},{"version":"6","address":"fd00::3/64","interface":1}]}\n'
`

// Plugins is a directory of test plugins.
type Plugins struct {
	Dir string
	t   testing.TB
	// seen is how many bytes of the recorded calls have been returned.
	seen int
}

// Call is a call of a plugin as the plugin saw it.
type Call struct {
	Plugin, Command string
	// Locked is true if the plugin had inherited the lock of an ADD.
	Locked bool
	// Env holds the CNI_ variables.
	Env map[string]string
	// Conf is its standard input.
	Conf map[string]any
}

// New makes a directory with plugins of the given names.
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
	p.write(name, []byte(script), 0o700)
}

// Remove removes a plugin.
func (p *Plugins) Remove(name string) {
	p.t.Helper()
	if err := os.Remove(filepath.Join(p.Dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

// Fail makes a plugin respond to a command with an error until [Plugins.Heal].
func (p *Plugins) Fail(name, command string, code uint, msg string) {
	p.t.Helper()
	response, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "code": code, "msg": msg})
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(name+".fail."+command, response, 0o600)
}

// Hang makes a plugin hang on a command until [Plugins.Heal], in a child process
// that keeps its output open.
func (p *Plugins) Hang(name, command string) {
	p.t.Helper()
	p.write(name+".hang."+command, nil, 0o600)
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

// Answer replaces a plugin's response to ADD.
func (p *Plugins) Answer(name, answer string) {
	p.t.Helper()
	p.write(name+".answer", []byte(answer), 0o600)
}

func (p *Plugins) write(name string, data []byte, mode os.FileMode) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.Dir, name), data, mode); err != nil {
		p.t.Fatal(err)
	}
}

// Calls returns the calls since the last Calls.
func (p *Plugins) Calls() []Call {
	p.t.Helper()
	notes, err := os.ReadFile(filepath.Join(p.Dir, "calls"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.t.Fatal(err)
	}

	var calls []Call
	for line := range strings.Lines(string(notes[p.seen:])) {
		field := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(field) != 9 {
			p.t.Fatalf("plugin noted %q", line)
		}

		call := Call{Locked: field[0] != "", Plugin: field[1], Command: field[2], Env: map[string]string{
			"CNI_COMMAND": field[2], "CNI_CONTAINERID": field[3], "CNI_NETNS": field[4],
			"CNI_IFNAME": field[5], "CNI_ARGS": field[6], "CNI_PATH": field[7],
		}}
		if err := json.Unmarshal([]byte(field[8]), &call.Conf); err != nil {
			p.t.Fatalf("plugin noted %q: %v", line, err)
		}
		calls = append(calls, call)
	}

	p.seen = len(notes)
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
