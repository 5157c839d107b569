package arch

import (
	"go/ast"
	"slices"
	"testing"
)

// inheriting may start programs that are to have what this process has: itself,
// and the keeper, whose children begin with nothing of it.
var inheriting = []string{"cmd/crisp/sync.go", "runtime/keeper/upgrade.go", "runtime/keeper/main.go", "runtime/keeper/client/connect.go", "runtime/ordinary/ordinary.go"}

// TestProgramsInheritNothing has the daemon start programs by runtime/ordinary
// only: they would have its CPUs, its priority and its umask.
func TestProgramsInheritNothing(t *testing.T) {
	starts := []string{"StartProcess", "ForkExec"}
	ofCommands := []string{"Run", "Output", "CombinedOutput", "Start"}
	for _, f := range sources(t) {
		if f.test || !within(f.dir, "cmd", "cri", "image", "network", "runtime") || slices.Contains(inheriting, f.path) {
			continue
		}
		commands := slices.Contains(f.imports(), "os/exec")
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}

			s, ok := call.Fun.(*ast.SelectorExpr)
			if ok && (slices.Contains(starts, s.Sel.Name) || commands && len(call.Args) == 0 && slices.Contains(ofCommands, s.Sel.Name)) {
				t.Errorf("%s:%d: %s starts a program that inherits what is this process's: use runtime/ordinary", f.path, f.line(call.Pos()), s.Sel.Name)
			}
			return true
		})
	}
}
