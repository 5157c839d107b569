package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"testing"
)

// TestDeferredResults requires that what a deferred function cleans up is not a named
// result that a return has set to nil: it would be lost.
func TestDeferredResults(t *testing.T) {
	for _, f := range sources(t) {
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			for _, name := range lostResults(fn) {
				t.Errorf("%s:%d: %s cleans up its result %s when it returns nil instead of it: use a variable", f.path, f.line(fn.Pos()), fn.Name.Name, name)
			}
		}
	}
}

// TestLostResults shows what is found.
func TestLostResults(t *testing.T) {
	const body = `package p
func lost() (f *os.File, err error) {
	if f, err = open(); err != nil { return nil, err }
	defer func() { if err != nil { f.Close() } }()
	if err := fill(f); err != nil { return nil, err }
	return f, nil
}
func passed() (f *os.File, err error) {
	defer func() { if err != nil { end(f) } }()
	return nil, fill(f)
}
func kept() (f *os.File, err error) {
	if f, err = open(); err != nil { return nil, err }
	defer func() { if err != nil { f.Close() } }()
	do(func() (*os.File, error) { return nil, nil })
	return f, fill(f)
}
func other() (_ *os.File, err error) {
	f, err := open()
	defer func() { if err != nil { f.Close() } }()
	return nil, err
}`
	parsed, err := parser.ParseFile(token.NewFileSet(), "p.go", body, 0)
	if err != nil {
		t.Fatal(err)
	}

	want := map[string][]string{"lost": {"f"}, "passed": {"f"}, "kept": nil, "other": nil}
	for _, decl := range parsed.Decls {
		fn := decl.(*ast.FuncDecl)
		if got := lostResults(fn); !slices.Equal(got, want[fn.Name.Name]) {
			t.Errorf("%s: found %q, want %q", fn.Name.Name, got, want[fn.Name.Name])
		}
	}
}

// lostResults lists a function's named results that a deferred function uses, and that a
// later return sets to nil.
func lostResults(fn *ast.FuncDecl) []string {
	at := map[string]int{} // place among the results
	if fn.Type.Results != nil {
		n := 0
		for _, field := range fn.Type.Results.List {
			for _, name := range field.Names {
				at[name.Name] = n
				n++
			}
		}
	}

	since := map[string]token.Pos{} // where the first deferred function that uses it is
	lost := map[string]bool{}
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.DeferStmt:
			if literal, ok := n.Call.Fun.(*ast.FuncLit); ok {
				for name := range usedBy(literal.Body) {
					if _, ok := at[name]; ok && since[name] == token.NoPos {
						since[name] = n.Pos()
					}
				}
			}
			return false
		case *ast.FuncLit:
			return false // its returns are its own
		case *ast.ReturnStmt:
			for name, pos := range since {
				if at[name] < len(n.Results) && n.Pos() > pos && isNil(n.Results[at[name]]) {
					lost[name] = true
				}
			}
		}
		return true
	})
	return slices.Sorted(maps.Keys(lost))
}

// usedBy are the names whose methods a body calls, and which it passes to functions.
func usedBy(body *ast.BlockStmt) map[string]bool {
	used := map[string]bool{}
	ast.Inspect(body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		values := call.Args
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			values = append([]ast.Expr{sel.X}, values...)
		}

		for _, v := range values {
			if name, ok := v.(*ast.Ident); ok {
				used[name.Name] = true
			}
		}
		return true
	})
	delete(used, "err") // is meant to be what is returned
	return used
}

func isNil(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && name.Name == "nil"
}
