package spawn

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkStart measures a plan of one step, up to execve and the reaping.
func BenchmarkStart(b *testing.B) {
	p := newProgram()
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
	for b.Loop() {
		if r := p.run(b, Options{}); r.err != nil {
			b.Fatal(r.err)
		}
	}
}

// BenchmarkCompile measures the layout of the child's memory alone.
func BenchmarkCompile(b *testing.B) {
	p := newProgram()
	for range 150 {
		p.do("open", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/some/path/of/usual/length"), num(0), num(0))
	}
	for b.Loop() {
		if _, err := compile(&p.Plan, nil, 3, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
