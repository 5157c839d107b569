package client

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/wire"
)

// outgoing collects the files of a message, which stay their owners'.
type outgoing struct {
	files wire.Files
	plan  int // the only file that close closes, 0 for none
	// owners keep the descriptors open until they are sent: the finalizer
	// closes a file without references.
	owners []*os.File
	err    error // the first
}

func (o *outgoing) add(r wire.Role, f *os.File) {
	if o.err != nil {
		return
	}
	if f == nil {
		o.err = fmt.Errorf("%w: the file for %q is nil", ErrInvalid, r)
		return
	}

	n, err := wire.Number(f)
	o.err = err
	o.files.Add(r, n)
	o.owners = append(o.owners, f)
}

// addPlan adds a plan in a file of its own.
func (o *outgoing) addPlan(p *plan.Plan) error {
	fd, err := sealedFile("plan", p.Encode())
	if err != nil {
		return err
	}
	o.files.Add(wire.Plan, fd)
	o.plan = fd
	return nil
}

// addLog adds the files of a log, nil for none, and returns its longest line.
func (o *outgoing) addLog(l *LogConfig) (maxLine int64) {
	if l == nil {
		return 0
	}

	for i, s := range []*Stream{l.Stdout, l.Stderr} {
		if s != nil {
			roles := wire.Streams()[i]
			o.add(roles.Pipe, s.Pipe)
			o.add(roles.Spool, s.Spool)
		}
	}
	for _, f := range l.Former {
		o.add(wire.Former, f)
	}
	o.add(wire.Log, l.Out)
	return int64(l.MaxLine)
}

func (o *outgoing) addKept(list []Named) {
	for _, n := range list {
		o.add(wire.Kept.Of(n.Name), n.File)
	}
}

// close closes the plan; the other files stay open.
func (o *outgoing) close() {
	runtime.KeepAlive(o.owners)
	if o.plan > 0 {
		unix.Close(o.plan)
	}
}

// takeFile takes a file out of a message, nil if it is not there.
func takeFile(files *wire.Files, r wire.Role) *os.File {
	if !files.Has(r) {
		return nil
	}
	return os.NewFile(uintptr(files.Take(r)), string(r))
}

// takeFamily takes the members of a family by name.
func takeFamily(files *wire.Files, family wire.Role) map[string]*os.File {
	m := map[string]*os.File{}
	for _, f := range files.TakeAll(family) {
		m[f.Role.Name(family)] = os.NewFile(uintptr(f.FD), string(f.Role))
	}
	return m
}

// takeLog takes a log with its streams, nil if there is none.
func takeLog(files *wire.Files) *LogConfig {
	if !files.Has(wire.Log) {
		return nil
	}

	l := &LogConfig{}
	for i, to := range []**Stream{&l.Stdout, &l.Stderr} {
		if roles := wire.Streams()[i]; files.Has(roles.Pipe) {
			*to = &Stream{Pipe: takeFile(files, roles.Pipe), Spool: takeFile(files, roles.Spool)}
		}
	}
	l.Out = takeFile(files, wire.Log)
	return l
}
