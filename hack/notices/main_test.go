package main

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLinkedModules compares the notices with the modules that are linked into
// the programs.
func TestLinkedModules(t *testing.T) {
	var notices bytes.Buffer
	if err := run(&notices); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "crisp/cmd/crisp", "crisp/cmd/crisp-keeper", "crisp/cmd/crisp-net")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}

	for _, program := range []string{"crisp", "crisp-keeper", "crisp-net"} {
		info, err := buildinfo.ReadFile(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}

		if len(info.Deps) == 0 {
			t.Errorf("%s has no module information", program)
		}
		for _, m := range info.Deps {
			if !strings.Contains(notices.String(), "==== "+m.Path+" "+m.Version+": LICEN") &&
				!strings.Contains(notices.String(), "==== "+m.Path+" "+m.Version+": COPYING") {
				t.Errorf("%s links %s %s, whose licence is missing", program, m.Path, m.Version)
			}
		}
	}

	if !strings.HasPrefix(notices.String(), "==== Go go1.") {
		t.Error("the licence of Go is missing")
	}
}

func TestNoLicence(t *testing.T) {
	if err := write(&bytes.Buffer{}, module{"example.org/m", "v1", t.TempDir()}); !errors.Is(err, errNoLicence) {
		t.Errorf("error %v, want %v", err, errNoLicence)
	}
}
