package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// file is a parsed source file of the module.
type file struct {
	path string // from the top of the checkout
	dir  string
	test bool
	ast  *ast.File
	fset *token.FileSet
}

const top = "../.."

// sources parses every Go file of the module, whatever its build constraints.
func sources(t *testing.T) []file {
	t.Helper()
	var all []file
	fset := token.NewFileSet()
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || isModule(path)) {
				return filepath.SkipDir
			}
			return nil
		}

		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}

		rel, err := filepath.Rel(top, path)
		all = append(all, file{rel, filepath.Dir(rel), strings.HasSuffix(path, "_test.go"), parsed, fset})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	if len(all) < 100 {
		t.Fatalf("found only %d files: the test looks in the wrong place", len(all))
	}
	return all
}

// isModule reports whether a directory is a module of its own.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// text is the file's lines.
func (f file) text(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(top, f.path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(data), "\n")
}

func (f file) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

func (f file) line(pos token.Pos) int { return f.fset.Position(pos).Line }

// within reports whether path is one of the directories or below one.
func within(path string, directories ...string) bool {
	for _, directory := range directories {
		if path == directory || strings.HasPrefix(path, directory+"/") {
			return true
		}
	}
	return false
}
