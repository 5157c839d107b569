package arch

import (
	"go/ast"
	"slices"
	"testing"
)

// inheriting may start programs that inherit this process's attributes: itself,
// and the keeper, whose children inherit none of them.
var inheriting = []string{"cmd/crisp/sync.go", "runtime/keeper/upgrade.go", "runtime/keeper/main.go", "runtime/keeper/client/connect.go", "runtime/ordinary/ordinary.go"}

// TestProgramsInheritNothing requires the daemon to start programs only by
// runtime/ordinary: otherwise they would inherit its CPU affinity, its priority
// and its umask.
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
				t.Errorf("%s:%d: %s starts a program that inherits this process's attributes: use runtime/ordinary", f.path, f.line(call.Pos()), s.Sel.Name)
			}
			return true
		})
	}
}
