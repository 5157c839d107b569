package main

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tree has the counts of a checkout.
type tree struct {
	dir       string
	functions []function
	packages  map[string]*pkg // by directory

	lines, commentLines int
}

// pkg is a package.
type pkg struct {
	name       string
	documented bool
	imports    map[string]bool
}

// function is a function with a body.
type function struct {
	lines  int // from func to the closing brace
	tokens int
	paths  int // cyclomatic complexity

	// Of the body, without the lines of its braces.
	inside, blank, comments int
}

// read counts the tree at dir.
func read(dir string) (*tree, error) {
	t := &tree{dir: dir, packages: map[string]*pkg{}}
	return t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != dir && passedOver(path, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}

		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		return t.file(path)
	})
}

// passedOver reports whether a directory is skipped.
func passedOver(path, name string) bool {
	switch name {
	case "hack", "test", "vendor", "testdata":
		return true
	}
	if strings.HasPrefix(name, ".") {
		return true
	}
	_, err := os.Stat(filepath.Join(path, "go.mod")) // a separate module
	return err == nil
}

// file adds a source file.
func (t *tree) file(path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}

	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}

	if ast.IsGenerated(f) {
		return nil
	}

	t.lines += strings.Count(string(src), "\n")
	for _, group := range f.Comments {
		t.commentLines += fset.Position(group.End()).Line - fset.Position(group.Pos()).Line + 1
	}

	t.pkg(filepath.Dir(path), f)

	text := strings.Split(string(src), "\n")
	for _, decl := range f.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Body != nil {
			t.functions = append(t.functions, count(fset, f, fn, src, text))
		}
	}

	return nil
}

func (t *tree) pkg(dir string, f *ast.File) {
	p := t.packages[dir]
	if p == nil {
		p = &pkg{name: dir, imports: map[string]bool{}}
		t.packages[dir] = p
	}

	p.documented = p.documented || f.Doc != nil
	for _, i := range f.Imports {
		p.imports[i.Path.Value] = true
	}
}

// count measures a function.
func count(fset *token.FileSet, f *ast.File, fn *ast.FuncDecl, src []byte, text []string) function {
	line := func(p token.Pos) int { return fset.Position(p).Line }
	open, end := line(fn.Body.Lbrace), line(fn.Body.Rbrace)
	c := function{lines: end - line(fn.Pos()) + 1, paths: 1}

	for n := open; n < end-1; n++ { // text begins with line 1 at index 0
		c.inside++
		if strings.TrimSpace(text[n]) == "" {
			c.blank++
		}
	}

	for _, group := range f.Comments {
		if group.Pos() > fn.Body.Lbrace && group.End() < fn.Body.Rbrace {
			c.comments += line(group.End()) - line(group.Pos()) + 1
		}
	}

	first, last := fset.Position(fn.Pos()).Offset, fset.Position(fn.End()).Offset
	c.tokens = tokens(src[first:last])
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		if branches(n) {
			c.paths++
		}
		return true
	})

	return c
}

// branches reports whether a node adds a way through a function.
func branches(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
		return true
	case *ast.CaseClause:
		return n.List != nil
	case *ast.CommClause:
		return n.Comm != nil
	case *ast.BinaryExpr:
		return n.Op == token.LAND || n.Op == token.LOR
	}
	return false
}

// tokens is how many tokens a text has, without comments and automatic
// semicolons.
func tokens(src []byte) int {
	fset := token.NewFileSet()
	var s scanner.Scanner
	s.Init(fset.AddFile("", -1, len(src)), src, nil, 0)

	n := 0
	for {
		_, tok, literal := s.Scan()
		if tok == token.EOF {
			return n
		}
		if tok != token.SEMICOLON || literal == ";" {
			n++
		}
	}
}
