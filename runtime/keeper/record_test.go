package keeper

import (
	"os"
	"path/filepath"
	"testing"

	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

// TestRecordFails expects no leftovers of an exit record that cannot be
// written, neither then nor when the exit is forgotten.
func TestRecordFails(t *testing.T) {
	k := newKeeper(t.TempDir(), spawn.Options{})
	exits := filepath.Join(k.stateDir, exitsDir)
	// A directory in its place.
	if err := os.MkdirAll(filepath.Join(exits, "web", "x"), 0o700); err != nil {
		t.Fatal(err)
	}

	if err := k.record(&wire.Exited{ID: "web", Kind: wire.Container}); err == nil {
		t.Error("an exit was recorded where a directory is")
	}
	wantOnly(t, exits, "web")
	if err := os.RemoveAll(filepath.Join(exits, "web")); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(k.exitPath(unfinished+"web"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k.unrecord("web")
	wantOnly(t, exits)
}

func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(names) || len(list) > 0 && list[0].Name() != names[0] {
		t.Errorf("%s holds %v, want %v", dir, list, names)
	}
}
