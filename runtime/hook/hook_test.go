package hook

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestList checks the order of hooks, and that each keeps its source.
func TestList(t *testing.T) {
	s := &specs.Spec{}
	var sources Sources
	for _, k := range []Kind{Poststop, StartContainer, Prestart, CreateContainer, Poststart, CreateRuntime, CreateContainer} {
		if k == Poststart { // one that was there before, without a source
			s.Hooks.Poststart = []specs.Hook{{Path: "/old"}}
		}
		sources = Add(s, sources, Hook{Kind: k, Hook: specs.Hook{Path: "/" + string(k)}, Source: "of " + string(k)})
	}

	var got []string
	for _, h := range List(s.Hooks, sources) {
		got = append(got, h.String())
	}
	want := []string{
		"prestart hook /prestart (of prestart)", "createRuntime hook /createRuntime (of createRuntime)",
		"createContainer hook /createContainer (of createContainer)", "createContainer hook /createContainer (of createContainer)",
		"startContainer hook /startContainer (of startContainer)",
		"poststart hook /old", "poststart hook /poststart (of poststart)", "poststop hook /poststop (of poststop)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("hooks are\n%q\nwant\n%q", got, want)
	}
	if got := List(s.Hooks, sources, Poststop, Prestart); len(got) != 2 || got[0].Kind != Prestart {
		t.Errorf("two kinds: %v", got)
	}
	if List(nil, nil) != nil {
		t.Error("a spec without hooks has some")
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}

	zero := 0
	endless := math.MaxInt
	for name, tt := range map[string]struct {
		hook           Hook
		error, warning string
	}{
		"good":            {Hook{Kind: Poststop, Hook: specs.Hook{Path: file("good", 0o755)}}, "", ""},
		"open to others":  {Hook{Kind: Poststop, Hook: specs.Hook{Path: file("open", 0o777)}}, "", "any user of the node can replace"},
		"relative":        {Hook{Kind: Poststop, Hook: specs.Hook{Path: "good"}}, "not absolute", ""},
		"missing":         {Hook{Kind: CreateContainer, Hook: specs.Hook{Path: dir + "/none"}}, "does not exist", ""},
		"not executable":  {Hook{Kind: Poststop, Hook: specs.Hook{Path: file("data", 0o644)}}, "not executable", ""},
		"directory":       {Hook{Kind: Poststop, Hook: specs.Hook{Path: dir}}, "not a regular file", ""},
		"in container":    {Hook{Kind: StartContainer, Hook: specs.Hook{Path: "/only/there"}}, "", ""},
		"no time":         {Hook{Kind: Poststop, Hook: specs.Hook{Path: "/x", Timeout: &zero}}, "timeout", ""},
		"endless time":    {Hook{Kind: Poststop, Hook: specs.Hook{Path: "/x", Timeout: &endless}}, "timeout", ""},
		"NUL":             {Hook{Kind: Poststop, Hook: specs.Hook{Path: "/x", Env: []string{"A=\x00"}}}, "NUL", ""},
		"long argument":   {Hook{Kind: Poststop, Hook: specs.Hook{Path: "/x", Args: []string{"x", strings.Repeat("a", 128<<10)}}}, "at most 131071", ""},
		"long altogether": {Hook{Kind: StartContainer, Hook: specs.Hook{Path: "/x", Env: slices.Repeat([]string{"A=" + strings.Repeat("a", 100<<10)}, 11)}}, "at most 1048576", ""},
		"kind":            {Hook{Kind: "later", Hook: specs.Hook{Path: "/x"}}, "unknown kind", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tt.hook.Source = "file x.json"
			warning, err := tt.hook.Check()
			if tt.warning == "" && warning != "" || !strings.Contains(warning, tt.warning) {
				t.Errorf("warning %q, want %q", warning, tt.warning)
			}
			switch {
			case tt.error == "" && err != nil:
				t.Error(err)
			case tt.error != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.error) || !strings.Contains(err.Error(), "file x.json")):
				t.Errorf("error %v, want %q", err, tt.error)
			}
		})
	}
}

// TestBundle checks the state and the bundle of hooks in the runtime's namespaces.
func TestBundle(t *testing.T) {
	c := Container{
		ID: "c1", Bundle: filepath.Join(t.TempDir(), "hooks", "c1"),
		Spec: &specs.Spec{
			Version: specs.Version, Root: &specs.Root{Path: "rootfs", Readonly: true}, Annotations: map[string]string{"a": "b"},
			Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}},
		},
	}
	for k, want := range map[Kind]struct {
		state specs.State
		root  string
	}{
		CreateRuntime:   {specs.State{Status: specs.StateCreating, Pid: 7}, "/proc/7/root" + c.Bundle + "/rootfs"},
		CreateContainer: {specs.State{Status: specs.StateCreating, Pid: 1}, c.Bundle + "/rootfs"},
		StartContainer:  {specs.State{Status: specs.StateCreated, Pid: 1}, "/"},
		Poststart:       {specs.State{Status: specs.StateRunning, Pid: 7}, "/proc/7/root"},
		Poststop:        {specs.State{Status: specs.StateStopped}, c.Bundle + "/rootfs"},
	} {
		f, err := c.State(k, 7)
		if err != nil {
			t.Fatal(err)
		}
		var got specs.State
		err = json.NewDecoder(f).Decode(&got)
		f.Close()
		if err != nil || got.Status != want.state.Status || got.Pid != want.state.Pid || got.ID != "c1" || got.Bundle != c.Bundle || got.Annotations["a"] != "b" {
			t.Errorf("%s: state %+v, %v", k, got, err)
		}

		if err := c.WriteBundle(k, 7); err != nil {
			t.Fatal(err)
		}
		var s specs.Spec
		data, err := os.ReadFile(filepath.Join(c.Bundle, "config.json"))
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err != nil || s.Root.Path != want.root || !s.Root.Readonly {
			t.Errorf("%s: root %+v, %v, want %s", k, s.Root, err, want.root)
		}
	}

	for range 2 {
		if err := c.RemoveBundle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if c.Spec.Root.Path != "rootfs" {
		t.Error("the spec was changed")
	}
}
