package spawn

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkStart measures a plan of one step, including execve and wait.
func BenchmarkStart(b *testing.B) {
	p := newProgram()
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
	text, err := FindText()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if r := p.run(b, Options{Text: text}); r.err != nil {
			b.Fatal(r.err)
		}
	}
}

// BenchmarkCompile measures the layout of the child's memory alone.
func BenchmarkCompile(b *testing.B) {
	p := newProgram()
	text, err := FindText()
	if err != nil {
		b.Fatal(err)
	}

	for range 150 {
		p.do("open", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/some/path/of/usual/length"), num(0), num(0))
	}
	for b.Loop() {
		c, err := compile(&p.Plan, nil, 3, Options{Text: text})
		if err != nil {
			b.Fatal(err)
		}
		c.arena.release()
	}
}
