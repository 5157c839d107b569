package image

import (
	"encoding/json"
	"reflect"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestPlatformNames(t *testing.T) {
	for in, want := range map[platform]string{
		{"amd64", "linux", ""}:     "linux/amd64",
		{"AMD64", "Linux", "v1"}:   "linux/amd64",
		{"x86_64", "linux", ""}:    "linux/amd64",
		{"x86-64", "", ""}:         "linux/amd64",
		{"amd64", "linux", "v2"}:   "linux/amd64/v2",
		{"i386", "linux", "x"}:     "linux/386",
		{"aarch64", "linux", ""}:   "linux/arm64",
		{"arm64", "linux", "v8"}:   "linux/arm64",
		{"arm64", "linux", "8"}:    "linux/arm64",
		{"arm64", "linux", "v8.0"}: "linux/arm64",
		{"arm64", "linux", "v9"}:   "linux/arm64/v9",
		{"arm", "linux", ""}:       "linux/arm/v7",
		{"arm", "linux", "6"}:      "linux/arm/v6",
		{"armhf", "linux", ""}:     "linux/arm/v7",
		{"armel", "linux", ""}:     "linux/arm/v6",
		{"amd64", "windows", ""}:   "windows/amd64",
	} {
		if got := in.normal().String(); got != want {
			t.Errorf("%v is %s, want %s", in, got, want)
		}
	}
}

// TestChoose takes the best entry of an index, whatever the order, and none
// that does not run here.
func TestChoose(t *testing.T) {
	older := map[string]string{"amd64": "386", "arm64": "arm"}[runtime.GOARCH]
	for name, c := range map[string]struct {
		entries []*platform
		compat  bool
		want    int // -1 for none
	}{
		"own":               {[]*platform{{"s390x", "linux", ""}, {runtime.GOARCH, "linux", ""}}, false, 1},
		"own before older":  {[]*platform{{older, "linux", ""}, {runtime.GOARCH, "linux", ""}}, true, 1},
		"older":             {[]*platform{{"s390x", "linux", ""}, {older, "linux", ""}}, true, 1},
		"older, not run":    {[]*platform{{older, "linux", ""}}, false, -1},
		"nothing said":      {[]*platform{{"s390x", "linux", ""}, nil}, false, 1},
		"empty":             {[]*platform{{"s390x", "linux", ""}, {}}, false, 1},
		"only a system":     {[]*platform{{"", "windows", ""}, {"", "linux", ""}}, false, 1},
		"own before silent": {[]*platform{nil, {runtime.GOARCH, "linux", ""}}, false, 1},
		"upper case":        {[]*platform{{"s390x", "linux", ""}, {runtime.GOARCH, "Linux", ""}}, false, 1},
		"newer variant":     {[]*platform{{runtime.GOARCH, "linux", "v99"}}, false, -1},
		"none":              {[]*platform{{"s390x", "linux", ""}, {runtime.GOARCH, "windows", ""}}, true, -1},
	} {
		s := &Service{opts: Options{Compat32: c.compat}}
		d := &document{}
		for i, p := range c.entries {
			e := child{Platform: p}
			e.Digest, e.Size = digest.FromString(string(rune('a'+i))), 1
			d.children = append(d.children, e)
		}

		got, err := d.choose(s.rank)
		switch {
		case c.want < 0 && err == nil:
			t.Errorf("%s: chose %v", name, got)
		case c.want >= 0 && (err != nil || got.Digest != d.children[c.want].Digest):
			t.Errorf("%s: %v, %v; want entry %d", name, got, err, c.want)
		}
	}
}

// TestCommandsAsStrings reads what old tools wrote.
func TestCommandsAsStrings(t *testing.T) {
	var c configuration
	if err := json.Unmarshal([]byte(`{"config":{"Entrypoint":"/run me","Cmd":["a","b"]}}`), &c); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual([]string(c.Config.Entrypoint), []string{"/run me"}) || !reflect.DeepEqual([]string(c.Config.Cmd), []string{"a", "b"}) {
		t.Errorf("entrypoint %q, command %q", c.Config.Entrypoint, c.Config.Cmd)
	}
	if err := json.Unmarshal([]byte(`{"config":{"Entrypoint":null,"Cmd":3}}`), &configuration{}); err == nil {
		t.Error("a number is no command")
	}
}
