package plan

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Print writes the plan in readable form: its inputs, then its steps, one per line.
func (p *Plan) Print(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s\n\nclone   %s", p.Name, cloneNames.text(int64(p.Clone.Flags)))
	if p.Clone.Cgroup >= 0 {
		fmt.Fprintf(b, ", into %s", p.inputName(int64(p.Clone.Cgroup)))
	}

	fmt.Fprint(b, idMapText(", uid map", p.Clone.UIDMap), idMapText(", gid map", p.Clone.GIDMap), "\n")
	for i := range p.Inputs {
		in := &p.Inputs[i]
		fmt.Fprintf(b, "in %3d  %-36s %s\n", i, in.Name, in.text())
	}

	for i := range p.Steps {
		s := &p.Steps[i]
		fmt.Fprintf(b, "%6d  %-36s %s\n", i, s.Name, p.stepText(s))
	}
	return b.Flush()
}

func idMapText(label string, maps []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&b, "%s %d:%d:%d", label, m.ContainerID, m.HostID, m.Size)
		label = ","
	}
	return b.String()
}

// text describes how the input is obtained.
func (in *Input) text() string {
	switch in.Kind {
	case InputHeld:
		return "held " + strconv.Quote(in.Path)
	case InputFile:
		return "open " + strconv.Quote(in.Path) + " " + openNames.text(int64(in.OpenFlags))
	case InputProc:
		return "private procfs"
	}

	var b strings.Builder
	b.WriteString("clone mount " + strconv.Quote(in.Path))
	if in.Recursive {
		b.WriteString(" recursive")
	}

	for _, set := range []struct {
		label string
		table flagTable
		bits  uint64
	}{
		{"set", attrNames, in.AttrSet}, {"clear", attrNames, in.AttrClear},
		{"set all", attrNames, in.AttrSetRecursive}, {"propagation", mountNames, in.Propagation},
	} {
		if set.bits != 0 {
			fmt.Fprintf(&b, ", %s %s", set.label, set.table.text(int64(set.bits)))
		}
	}

	b.WriteString(idMapText(", uid map", in.UIDMap))
	b.WriteString(idMapText(", gid map", in.GIDMap))
	if in.IDMapRecursive {
		b.WriteString(", maps recursive")
	}

	return b.String()
}

func (p *Plan) stepText(s *Step) string {
	var b strings.Builder
	switch s.Cond {
	case IfSet:
		fmt.Fprintf(&b, "if r%d: ", s.CondReg)
	case IfUnset:
		fmt.Fprintf(&b, "unless r%d: ", s.CondReg)
	}

	if s.Save >= 0 {
		fmt.Fprintf(&b, "r%d = ", s.Save)
	}
	sig := signatureOf(s.Call)
	b.WriteString(sig.name + "(")

	for i := range s.Args {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.argText(&s.Args[i], sig, i))
	}

	b.WriteString(")")
	if len(s.Want) > 0 {
		fmt.Fprintf(&b, ", want %q", s.Want)
	}
	if len(s.Avoid) > 0 {
		fmt.Fprintf(&b, ", avoid %q", s.Avoid)
	}

	for _, e := range s.Ignore {
		b.WriteString(", " + unix.ErrnoName(e) + " is fine")
	}
	if s.Retry {
		b.WriteString(", again on EAGAIN")
	}
	if s.Fork {
		b.WriteString(", continue in the child")
	}
	if s.Exposed {
		b.WriteString(", which others see")
	}

	return b.String()
}

func (p *Plan) inputName(i int64) string { return "<" + p.Inputs[i].Name + ">" }

func (p *Plan) argText(a *Arg, sig signature, i int) string {
	switch a.Kind {
	case ArgInt:
		if i < len(sig.args) && sig.args[i] != nil {
			return sig.args[i](a.Int)
		}
		return number(a.Int)
	case ArgStr:
		return strconv.Quote(a.Str)
	case ArgStrs:
		quoted := make([]string, len(a.Strs))
		for i, s := range a.Strs {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, " ") + "]"
	case ArgBytes:
		if sig.memory != nil {
			return sig.memory(a.Bytes)
		}
		return bytesText(a.Bytes)
	case ArgIn:
		return p.inputName(a.Int)
	case ArgReg:
		return fmt.Sprintf("r%d", a.Int)
	case ArgFilter:
		return fmt.Sprintf("filter[%d]", len(a.Bytes)/8)
	case ArgPassFD:
		return fmt.Sprintf("pass(r%d)", a.Int)
	case ArgSync:
		if a.Int == AskDaemon {
			return "hook"
		}
		return "gate"
	case ArgBack:
		if a.Int != 0 {
			return fmt.Sprintf("keeper%+d", a.Int)
		}
		return "keeper"
	case ArgRegPtr:
		return fmt.Sprintf("&{r%d %s}", a.Int, bytesText(a.Bytes))
	case ArgNoFile:
		return "{usual}"
	case ArgBuf:
		return fmt.Sprintf("buf[%d]", a.Int)
	}
	return fmt.Sprintf("kind(%d)", a.Kind)
}

// bytesText formats memory as text if it is text, and otherwise as 8-byte words.
func bytesText(b []byte) string {
	text := len(b) > 0
	for _, c := range b {
		text = text && (c >= ' ' && c < 0x7f || c == '\n')
	}
	if text {
		return strconv.Quote(string(b))
	}

	var words []string
	for ; len(b) >= 8; b = b[8:] {
		words = append(words, fmt.Sprintf("%#x", binary.NativeEndian.Uint64(b)))
	}

	if len(b) > 0 {
		words = append(words, fmt.Sprintf("% x", b))
	}
	return "{" + strings.Join(words, " ") + "}"
}
