package arch

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	longestFunc     = 100 // lines
	longestTest     = 150 // much of which may be a table
	longestFile     = 600
	longestTestFile = 1000
)

// longFuncs are functions that may be longer, with the reason.
var longFuncs = map[string]string{}

// longFiles are files that may be longer, with the reason.
var longFiles = map[string]string{}

func TestLengths(t *testing.T) {
	for _, f := range sources(t) {
		limit, funcLimit := longestFile, longestFunc
		if f.test {
			limit, funcLimit = longestTestFile, longestTest
		}

		if lines := f.line(f.ast.FileEnd); lines > limit && longFiles[f.path] == "" && !ast.IsGenerated(f.ast) {
			t.Errorf("%s has %d lines, more than %d", f.path, lines, limit)
		}
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := f.line(fn.End()) - f.line(fn.Pos()) + 1; lines > funcLimit && longFuncs[f.dir+"."+fn.Name.Name] == "" {
				t.Errorf("%s:%d: %s has %d lines, more than %d", f.path, f.line(fn.Pos()), fn.Name.Name, lines, funcLimit)
			}
		}
	}
}

// TestParagraphs requires paragraphs in the bodies of long functions: one of
// twenty lines and more has a blank line, unless no list of statements in it is
// longer than three, as where all is one table, loop or switch.
func TestParagraphs(t *testing.T) {
	const long, few = 20, 3
	for _, f := range sources(t) {
		text := f.text(t)
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil || ast.IsGenerated(f.ast) {
				continue
			}

			first, last := f.line(fn.Body.Lbrace), f.line(fn.Body.Rbrace)
			if last-f.line(fn.Pos())+1 < long || longestList(fn.Body) <= few {
				continue
			}
			if !slices.ContainsFunc(text[first:last-1], func(line string) bool { return strings.TrimSpace(line) == "" }) {
				t.Errorf("%s:%d: %s has %d lines and no paragraph", f.path, f.line(fn.Pos()), fn.Name.Name, last-f.line(fn.Pos())+1)
			}
		}
	}
}

// longestList is how many statements the longest list in a node has.
func longestList(n ast.Node) (longest int) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BlockStmt:
			if len(n.List) > 0 && !isClause(n.List[0]) {
				longest = max(longest, len(n.List))
			}
		case *ast.CaseClause:
			longest = max(longest, len(n.Body))
		case *ast.CommClause:
			longest = max(longest, len(n.Body))
		}
		return true
	})
	return longest
}

// isClause reports whether a statement is a case of a switch or select.
func isClause(s ast.Stmt) bool {
	switch s.(type) {
	case *ast.CaseClause, *ast.CommClause:
		return true
	}
	return false
}

// TestPackageDocs requires one file in each package to document its purpose.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range sources(t) {
		name := f.ast.Name.Name
		if f.test && (strings.HasSuffix(name, "_test") || docs[f.dir] != nil) {
			continue
		}
		if docs[f.dir] == nil {
			docs[f.dir] = []string{}
		}
		if f.ast.Doc == nil {
			continue
		}

		docs[f.dir] = append(docs[f.dir], f.path)
		want := "Package " + name + " "
		if name == "main" {
			want = "Command "
		}

		if !strings.HasPrefix(f.ast.Doc.Text(), want) {
			t.Errorf("%s: the package's comment does not begin with %q", f.path, want)
		}
	}

	for dir, files := range docs {
		if len(files) != 1 {
			t.Errorf("%s: want one file with a package comment, have %d: %s", dir, len(files), strings.Join(files, ", "))
		}
	}
}

// TestNoInit requires that nothing runs before main.
func TestNoInit(t *testing.T) {
	for _, f := range sources(t) {
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s:%d: init runs behind the reader's back", f.path, f.line(fn.Pos()))
			}
		}
	}
}

// banned are functions with a better one, by package and name. The directories
// are those that may use them nevertheless.
var banned = map[string]struct {
	may     []string
	instead string
}{
	// The image service keeps working after the call that opened it has
	// returned.
	"context.Background": {[]string{"cmd", "hack", "test", "image"}, "take the caller's context, or context.WithoutCancel of it"},
	"context.TODO":       {nil, "take the caller's context"},
	"os.IsNotExist":      {nil, "errors.Is with os.ErrNotExist sees wrapped errors"},
	"os.IsExist":         {nil, "errors.Is with os.ErrExist sees wrapped errors"},
	"os.IsPermission":    {nil, "errors.Is with os.ErrPermission sees wrapped errors"},
	"os.Create":          {[]string{"hack", "test"}, "durable.WriteFile, or os.OpenFile with flags that say what is meant"},
	// The keeper and the code that starts programs write to /proc, the keeper
	// exit records that it renames itself; a layer is synced as a whole before
	// its directory gets its name.
	"os.RemoveAll":     {[]string{"cmd", "hack", "test"}, "rootpath.RemoveAll: below what is removed may be a container's tree, of any depth and with mounts in it"},
	"filepath.Walk":    {[]string{"hack", "test"}, "rootpath.Walk, which a container cannot lead astray or exhaust"},
	"filepath.WalkDir": {[]string{"hack", "test", "cri/node"}, "rootpath.Walk, which a container cannot lead astray or exhaust"},
	"fs.WalkDir":       {[]string{"hack", "test"}, "rootpath.Walk, which a container cannot lead astray or exhaust"},
	"os.CopyFS":        {[]string{"hack", "test"}, "it follows links and holds a descriptor a level"},
	"os.WriteFile":     {[]string{"hack", "test", "runtime/keeper", "runtime/ordinary", "image/layer", "network/cni/cnitest"}, "durable.WriteFile, which a crash leaves whole"},
}

func TestBanned(t *testing.T) {
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}

			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}

			name := pkg.Name + "." + sel.Sel.Name
			if sel.Sel.Name == "RemoveAll" && pkg.Name != "rootpath" {
				name = "os.RemoveAll" // of an os.Root too
			}

			if b, ok := banned[name]; ok && !within(f.dir, b.may...) {
				t.Errorf("%s:%d: %s: %s", f.path, f.line(sel.Pos()), name, b.instead)
			}
			return true
		})
	}
}

// TestErrorTexts requires texts that read well when they are wrapped.
func TestErrorTexts(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || within(f.dir, "hack", "test") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}

			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Errorf" && sel.Sel.Name != "New" {
				return true
			}

			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && strings.Contains(text, "failed to") {
					t.Errorf("%s:%d: an error says it failed by being one: %q", f.path, f.line(lit.Pos()), text)
				}
			}

			return true
		})
	}
}

// TestSkipsHaveReasons requires every skip to go through testkit, which records
// the missing feature and fails where that cannot be missing.
func TestSkipsHaveReasons(t *testing.T) {
	for _, f := range sources(t) {
		if within(f.dir, "test/testkit") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "testkit" {
				t.Errorf("%s:%d: use testkit.Skip", f.path, f.line(sel.Pos()))
			}
			return true
		})
	}
}
