package arch

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// boundary are the packages whose errors reach a caller of the CRI.
var boundary = []string{"cri/pod", "cri/spec", "cri/stats", "cri/stream", "image", "network", "runtime/cgroup", "runtime/launch"}

// internal are errors without a rule: they never reach a caller, or mean a bug
// of crisp, for which Internal is right.
var internal = map[string]string{
	"image.ErrLocked":      "the daemon does not start",
	"image.ErrClosed":      "the daemon is ending",
	"image.ErrConfig":      "the administrator's hosts.toml is wrong, and the caller cannot help it",
	"image.ErrInvalidID":   "ids of containers are made by cri/pod",
	"image.ErrNoRootFS":    "a record says that there is one",
	"image.ErrProtocol":    "the registry breaks its protocol, and another try will not help",
	"network.ErrClosed":    "the daemon is ending",
	"network.ErrInvalid":   "cri/pod asks",
	"network.ErrNoAddress": "a plugin breaks its protocol",
	"cgroup.ErrNotFound":   "a record says that there is one",
	"cgroup.ErrBusy":       "nothing is to be left in a cgroup that is removed",
	"cgroup.ErrDefunct":    "the group is left, and removed later",
	"launch.ErrNotHeld":    "plans and what is held for them are both ours",
	"pod.ErrSlow":          "ends the stream of events, whose client reads on from a list",
}

// TestSentinelsHaveCodes requires a gRPC code for every error that a package at
// the boundary documents.
func TestSentinelsHaveCodes(t *testing.T) {
	all := sources(t)
	ruled := map[string]bool{}
	for _, f := range all {
		if f.path != "cri/rpcerr/rules/rules.go" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := sel.X.(*ast.Ident); ok {
					ruled[pkg.Name+"."+sel.Sel.Name] = true
				}
			}
			return true
		})
	}

	if len(ruled) == 0 {
		t.Fatal("cri/rpcerr/rules/rules.go has no rules")
	}
	for _, f := range all {
		if f.test || !isBoundary(f.dir) {
			continue
		}
		for _, name := range sentinels(f.ast) {
			name = path.Base(f.dir) + "." + name
			if !ruled[name] && internal[name] == "" {
				t.Errorf("%s: %s has no rule in cri/rpcerr/rules/rules.go", f.path, name)
			}
		}
	}
}

func isBoundary(dir string) bool { return slices.Contains(boundary, dir) }

// sentinels lists the exported error variables of a file.
func sentinels(f *ast.File) []string {
	var names []string
	for _, decl := range f.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}

		for _, spec := range gen.Specs {
			if v, ok := spec.(*ast.ValueSpec); ok {
				for _, name := range v.Names {
					if strings.HasPrefix(name.Name, "Err") {
						names = append(names, name.Name)
					}
				}
			}
		}
	}

	return names
}
