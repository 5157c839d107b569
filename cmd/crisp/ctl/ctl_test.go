package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
	yaml "sigs.k8s.io/yaml/goyaml.v2"

	"crisp/cri/admin"
	"crisp/cri/client"
	"crisp/cri/pod"
	"crisp/image"
)

func TestCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {errors.New("x"), 1}, {fmt.Errorf("x: %w", client.ErrDown), 3}, {fmt.Errorf("x: %w", client.ErrNoRights), 4},
		{&fs.PathError{Op: "open", Path: "x", Err: unix.EACCES}, 4}, {client.ErrOther, 5}, {client.ErrNotFound, 6}, {errors.Join(client.ErrAmbiguous), 6},
		{ExitCode(42), 42},
	} {
		if got := Code(c.err); got != c.want {
			t.Errorf("%v has code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := newTable("NAME", "STATE", "X")
	tab.add("é", "Running", "1")
	tab.paint(1, good)
	tab.add("long\x1b[2Jname", "", "2")
	if got, want := tab.text(false), "NAME               STATE    X\né                  Running  1\nlong\\u001b[2Jname  -        2\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := tab.text(true); !strings.Contains(got, "\x1b[32mRunning\x1b[0m  1") || strings.Contains(got, "\x1b[2J") {
		t.Errorf("with colors: %q", got)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", 1 << 62: "4096.0 PiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 119 * time.Second: "119s", 125 * time.Second: "2m5s", time.Hour: "60m", 5 * time.Hour: "5h", 100 * time.Hour: "4d",
	} {
		if got := duration(d); got != want {
			t.Errorf("%s is %s, want %s", d, got, want)
		}
	}
}

func TestProgressLine(t *testing.T) {
	now := time.Now()
	for want, p := range map[string]image.Progress{
		"a:1: asking the registry": {Ref: "a:1", Began: now},
		"a:1: asking the registry; b was asked 7s ago, and has not answered; given up: m: refused": {
			Ref: "a:1", Began: now, Failed: "m: refused", Host: "c", Asked: []image.Asked{{Host: "b", Since: now.Add(-7 * time.Second)}, {Host: "c", Since: now}},
		},
		"a:1: 1 of 3 layers, 10.0 MiB of 40.0 MiB, 2.0 MiB/s, 15s left": {Ref: "a:1", Began: now.Add(-5 * time.Second), Layers: 3, Present: 1, Bytes: 10 << 20, Size: 40 << 20},
		"a:1: 3 of 3 layers, 5 B of 5 B":                                {Ref: "a:1", Began: now, Layers: 3, Present: 3, Bytes: 5, Size: 5},
	} {
		if got := progressLine(p, now); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestEndings puts ends of containers into words that differ.
func TestEndings(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []admin.Container{
		{ExitCode: 0}, {ExitCode: 1}, {ExitCode: 126}, {ExitCode: 127}, {ExitCode: 137}, {ExitCode: 143}, {ExitCode: 139}, {ExitCode: 159}, {ExitCode: 129},
		{ExitCode: 137, Reason: "OOMKilled", MemoryLimit: 1 << 20, Cgroup: "/x"}, {ExitCode: 137, Reason: "OOMKilled"}, {ExitCode: 255, Reason: "Unknown"}, {ExitCode: 255},
	} {
		text, _ := ending(c)
		if text == "" || seen[text] {
			t.Errorf("%+v ended as others do: %q", c, text)
		}
		seen[text] = true
	}
}

// TestAdvice requires that an error says more than the stage it happened at.
func TestAdvice(t *testing.T) {
	for _, c := range []struct{ stage, text, want string }{
		{"attach network", "run sandbox x: attach network: no IP addresses available in range set", "crisp network show"},
		{"attach network", "run sandbox x: attach network: something", "network plugin"},
		{"", `start container x: step 31 "exec": exec format error`, "another processor"},
		{"prepare root file system", "write x: no space left on device", "crisp df"},
		{"run plan", `exec "ngnix": executable file not found in $PATH`, "no such program"},
		{"run plan", "something", ""},
		{"run plan", "", "hook"},
		{"", "who knows", ""},
	} {
		if got := advice(c.stage, c.text); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("about %q at %q: %q, want %q", c.text, c.stage, got, c.want)
		}
	}
}

// TestExplanationIsSafe has a container's texts printed.
func TestExplanationIsSafe(t *testing.T) {
	now := time.Now()
	e := explain(admin.Report{
		Pod:     &admin.Pod{Name: "default/web\nfalse", ID: "1234", Ready: true, Containers: []admin.Container{{Name: "x\x1b[2J\nfalse", State: "exited", ExitCode: 1, Message: "a\x1b[31mb\nc"}}},
		History: []pod.Event{{Time: now, What: "run pod failed", Error: "\x1b]0;title\x07"}},
	}, "", now)
	var out strings.Builder
	if err := e.print(&out, false); err != nil || strings.ContainsAny(out.String(), "\x1b\x07") || strings.Contains(out.String(), "\nfalse") {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

// TestEncodedIsSafe encodes a text that a terminal would obey, as JSON and as YAML,
// which has its own idea of what can be printed.
func TestEncodedIsSafe(t *testing.T) {
	object := map[string]string{"label": "a\u009b31mb\u202ec\u007fd\U000e0001 e\ttab"}
	for name, test := range map[string]struct {
		unsafe func(rune) bool
		read   func([]byte, any) error
	}{
		"json": {func(r rune) bool { return !unicode.IsPrint(r) }, json.Unmarshal},
		"yaml": {unicode.IsControl, yaml.Unmarshal},
	} {
		var out strings.Builder
		f := format{name: name}
		if err := f.print(&out, object, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if text := strings.ReplaceAll(out.String(), "\n", ""); strings.ContainsFunc(text, test.unsafe) {
			t.Errorf("%s: %q", name, text)
		}

		var back map[string]string
		if err := test.read([]byte(out.String()), &back); err != nil || !maps.Equal(back, object) {
			t.Errorf("%s is read as %q, error %v", name, back, err)
		}
	}
}

// TestTemplate prints what some objects have, and all of it or nothing.
func TestTemplate(t *testing.T) {
	objects := []map[string]any{{"name": "a", "ended": 7}, {"name": "b"}}
	for body, want := range map[string]string{
		"{{range .}}{{.name}} {{.ended}},{{end}}":           "a 7,b <no value>,",
		"{{range .}}{{.name}} {{len .ended}},{{end}}":       "",
		"{{range .}}{{if .ended}}{{.name}}{{end}}{{end}}\n": "a\n",
	} {
		var f format
		if err := f.Set(templatePrefix + body); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := f.print(&out, objects, nil); out.String() != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", body, &out, err, want)
		}
	}
}
