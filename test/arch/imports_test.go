package arch

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// walls list what the packages in a directory may import of this module. The
// first entry that matches a package applies.
var walls = []struct {
	directory string
	may       []string
}{
	{"cmd/crisp-keeper", []string{"runtime/keeper"}},
	{"cmd/crisp", []string{"cmd/crisp", "cri", "image", "network", "runtime"}},
	{"cmd", []string{"cri", "image", "network", "runtime"}},
	{"cri", []string{"cri", "image", "network", "runtime"}},
	// image and network share with runtime only access to the disk (paths that
	// a container controls, and files that survive a crash), text that a
	// container controls, the parts of a call's trace, threads in other namespaces,
	// and for network the start of the node's programs.
	{"image", []string{"image", "runtime/rootpath", "runtime/durable", "runtime/untrusted", "runtime/span", "runtime/thread"}},
	{"network", []string{"network", "runtime/rootpath", "runtime/durable", "runtime/untrusted", "runtime/ordinary", "runtime/failpoint", "runtime/span"}},
	{"runtime", []string{"runtime"}},
	// Tests of every package can use testkit, without import cycles.
	{"test/testkit/belongings", []string{"runtime/keeper/client", "test/testkit"}},
	{"test/testkit", []string{"test/testkit"}},
	{"test", []string{"cmd", "cri", "image", "network", "runtime", "test"}},
	{"hack", []string{"cri", "image", "network", "runtime", "hack", "test"}},
}

func TestWalls(t *testing.T) {
	for _, f := range sources(t) {
		i := slices.IndexFunc(walls, func(w struct {
			directory string
			may       []string
		}) bool {
			return within(f.dir, w.directory)
		})
		if i < 0 {
			t.Errorf("%s: a new top-level directory has no entry in the table of walls", f.path)
			continue
		}

		for _, path := range f.imports() {
			inside, ours := strings.CutPrefix(path, "crisp/")
			if !ours || within(inside, walls[i].may...) || f.test && within(inside, "test/testkit") {
				continue
			}
			t.Errorf("%s imports %s: packages in %s may import only %s", f.path, path, walls[i].directory, strings.Join(walls[i].may, ", "))
		}
	}
}

// keepers list the only packages that may import a third-party one. Tests may
// too.
var keepers = []struct {
	path string
	may  []string
	why  string
}{
	{"k8s.io/cri-api/pkg/apis", []string{"cri", "cmd/crisp", "test", "hack"}, "the CRI's types stop at cri, so that the rest can be read and tested without them"},
	{"google.golang.org/grpc/codes", []string{"cri/rpcerr", "test"}, "one table turns errors into codes"},
	{"google.golang.org/grpc/status", []string{"cri/rpcerr", "test"}, "one table turns errors into codes"},
	{"go.opentelemetry.io/otel", []string{"runtime/span", "cri/telemetry"}, "what is traced knows spans, not who records them"},
	{"unsafe", []string{"runtime/spawn", "runtime/host", "runtime/rootpath"}, "raw system calls are made in few places"},
	{"C", []string{"test/seccompdiff"}, "crisp is pure Go"},
}

func TestKeptImports(t *testing.T) {
	for _, f := range sources(t) {
		for _, path := range f.imports() {
			for _, k := range keepers {
				if within(path, k.path) && !within(f.dir, k.may...) && !f.test {
					t.Errorf("%s imports %s, which only %s may: %s", f.path, path, strings.Join(k.may, ", "), k.why)
				}
			}
		}
	}
}

// TestKeeperIsSmall limits the keeper to the standard library, x/sys and the
// types of the runtime specification: it is resident on every node, and
// must not need replacing when anything else changes.
func TestKeeperIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-C", top, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/crisp-keeper").Output()
	if err != nil {
		t.Fatal(err)
	}

	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "crisp/runtime/keeper") {
		t.Fatalf("the keeper does not import its own package, but %q", deps)
	}

	for _, dep := range deps {
		if !within(dep, "crisp/runtime", "crisp/cmd/crisp-keeper", "golang.org/x/sys/unix", "github.com/opencontainers/runtime-spec/specs-go") {
			t.Errorf("crisp-keeper depends on %s", dep)
		}
	}

	out, err = exec.Command("go", "list", "-C", top, "-deps", "./cmd/crisp-keeper").Output()
	if err != nil {
		t.Fatal(err)
	}

	for _, heavy := range []string{"net/http", "text/template", "html/template", "crypto/tls"} {
		if slices.Contains(strings.Fields(string(out)), heavy) {
			t.Errorf("crisp-keeper depends on %s", heavy)
		}
	}
}
