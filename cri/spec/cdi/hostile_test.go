package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit/pace"
)

// bomb is a document of less than a kilobyte that would be a billion strings.
func bomb() string {
	var b strings.Builder
	b.WriteString("a: &a [x, x, x, x, x, x, x, x, x, x]\n")
	for c := 'b'; c <= 'j'; c++ {
		fmt.Fprintf(&b, "%c: &%[1]c [%s]\n", c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c, ", c-1), 10), ", "))
	}
	return b.String() + "cdiVersion: \"0.6.0\"\nkind: vendor.com/bomb\ndevices: *j\n"
}

// TestHostileFiles has files among the specs that no driver would write. Each is
// named, none costs much, and the others are read.
func TestHostileFiles(t *testing.T) {
	dir := directory(t, map[string]string{
		"bomb.yaml": bomb(), "deep.json": strings.Repeat("[", 1<<20), "empty.yaml": "", "list.json": "[]", "null.json": "null", "text.yaml": "text",
		"version.json": `{"cdiVersion": "0.6.0; rm", "kind": "vendor.com/v", "devices": [{"name": "0", "containerEdits": {"env": ["A=b"]}}]}`,
		"kind.json":    `{"cdiVersion": "0.6.0", "kind": "../../etc", "devices": [{"name": "0", "containerEdits": {"env": ["A=b"]}}]}`,
		"nodes.json":   `{"cdiVersion": "0.6.0", "kind": "vendor.com/n", "devices": [null]}`,
		"edits.json":   `{"cdiVersion": "1.1.0", "kind": "vendor.com/e", "devices": [{"name": "0", "containerEdits": {"hooks": [{"hookName": "early", "path": "/x"}]}}]}`,
		"closid.json":  `{"cdiVersion": "1.1.0", "kind": "vendor.com/r", "devices": [{"name": "0", "containerEdits": {"intelRdt": {"closID": "../../proc"}}}]}`,
		"twice.json":   `{"cdiVersion": "1.1.0", "kind": "vendor.com/t", "devices": [{"name": "0", "containerEdits": {"netDevices": [{"hostInterfaceName": "a", "name": "x"}, {"hostInterfaceName": "a", "name": "y"}]}}]}`,
		"one.json":     description, "two.json": description,
		"good.json": strings.ReplaceAll(description, "vendor.com/gpu", "vendor.com/good"),
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		unix.Mkfifo(at("fifo.yaml"), 0o600), os.Symlink(at("fifo.yaml"), at("link.yaml")), os.Symlink(at("none"), at("dangling.json")),
		os.Symlink("/dev/zero", at("endless.json")), os.Symlink(dir, at("directory.json")), os.Symlink(at("loop.json"), at("loop.json")),
		os.WriteFile(at("huge.json"), nil, 0o600), os.Truncate(at("huge.json"), 1<<40),
	); err != nil {
		t.Fatal(err)
	}

	dirs := []string{at("good.json"), at("none"), dir} // one that is no directory comes first
	begin := time.Now()
	r := New(dirs)
	if _, err := r.Inject(emptySpec(), []string{"vendor.com/good=0"}); err != nil {
		t.Errorf("the good file: %v", err)
	}
	_, err := r.Inject(emptySpec(), []string{"vendor.com/gpu=0"})
	if !errors.Is(err, ErrUnknown) || !errors.Is(err, ErrConflict) {
		t.Fatalf("a device of two files: %v, want %v and %v", err, ErrUnknown, ErrConflict)
	}
	if took := time.Since(begin); took > pace.Scale(5*time.Second) {
		t.Errorf("reading took %v", took)
	}
	for _, name := range []string{
		"bomb.yaml", "deep.json", "empty.yaml", "list.json", "null.json", "text.yaml", "version.json", "kind.json", "nodes.json", "edits.json", "closid.json",
		"twice.json", "one.json", "two.json", "fifo.yaml", "link.yaml", "dangling.json", "endless.json", "directory.json", "loop.json", "huge.json",
	} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s", name)
		}
	}
	if !strings.Contains(err.Error(), at("good.json")+": ") {
		t.Error("the error does not name the file in place of a directory")
	}
}

// TestPriority expects a later directory to replace devices of an earlier one, and
// two files of the earlier one that differ to matter no longer.
func TestPriority(t *testing.T) {
	first := directory(t, map[string]string{"one.json": description, "two.json": description})
	second := directory(t, map[string]string{"vendor.json": strings.Replace(description, "GPU=0", "GPU=second", 1)})
	s := emptySpec()
	if _, err := New([]string{first, second}).Inject(s, []string{"vendor.com/gpu=0"}); err != nil || s.Process.Env[2] != "GPU=second" {
		t.Errorf("environment %q, %v", s.Process.Env, err)
	}
}

// TestConflictingEdits requests devices of which one would replace what another
// needs.
func TestConflictingEdits(t *testing.T) {
	edits := func(name, edits string) string { return `{"name": "` + name + `", "containerEdits": {` + edits + `}}` }
	dir := directory(t, map[string]string{"vendor.json": `{"cdiVersion": "1.1.0", "kind": "vendor.com/x", "devices": [` + strings.Join([]string{
		edits("a", `"netDevices": [{"hostInterfaceName": "eth7", "name": "net1"}]`), edits("b", `"netDevices": [{"hostInterfaceName": "eth7", "name": "net2"}]`),
		edits("c", `"intelRdt": {"closID": "gold"}`), edits("d", `"intelRdt": {"closID": "silver"}`),
		edits("e", `"netDevices": [{"hostInterfaceName": "eth7", "name": "net1"}], "intelRdt": {"closID": "gold"}`),
	}, ",") + `]}`})
	r := New([]string{dir})
	for _, bad := range [][]string{{"a", "b"}, {"c", "d"}, {"b", "e"}, {"d", "e"}} {
		s := emptySpec()
		if _, err := r.Inject(s, []string{"vendor.com/x=" + bad[0], "vendor.com/x=" + bad[1]}); !errors.Is(err, ErrConflict) || len(s.Linux.NetDevices) > 0 || s.Linux.IntelRdt != nil {
			t.Errorf("%q: %v, left %+v", bad, err, s.Linux)
		}
	}
	if _, err := r.Inject(emptySpec(), []string{"vendor.com/x=a", "vendor.com/x=c", "vendor.com/x=e"}); err != nil {
		t.Error(err)
	}
}
