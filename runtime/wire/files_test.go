package wire

import (
	"errors"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire/pack"
)

func TestTakeFiles(t *testing.T) {
	files := Files{{Input, 5}, {PidFD, 6}, {Namespace.Of("net"), 7}, {Input, 8}, {"ns", 9}, {Namespace, 10}, {Kept.Of("stdin"), 11}}
	if fd := files.FD(PidFD); fd != 6 || !files.Has(PidFD) || files.Has(Log) || files.FD(Log) != -1 {
		t.Errorf("the pidfd is %d of %v", fd, files)
	}

	if got := files.TakeAll(Input); !reflect.DeepEqual(got, Files{{Input, 5}, {Input, 8}}) {
		t.Errorf("took inputs %v", got)
	}
	// A family's members have names.
	if got := files.TakeAll(Namespace, Kept); !reflect.DeepEqual(got.Numbers(), []int{7, 11}) || got[0].Role.Name(Namespace) != "net" {
		t.Errorf("took namespaces and kept %v", got)
	}
	if fd := files.Take(PidFD); fd != 6 || files.Take(PidFD) != -1 {
		t.Errorf("took pidfd %d", fd)
	}
	if !reflect.DeepEqual(files.Numbers(), []int{9, 10}) {
		t.Errorf("left %v", files)
	}
}

func TestCopyFiles(t *testing.T) {
	before := openFDs(t)
	copies, err := Files{{Log, 0}, {Former, 1}}.Copy()
	if err != nil || len(copies) != 2 || copies[1].Role != Former || copies.FD(Log) < 3 {
		t.Fatalf("copies %v, error %v", copies, err)
	}
	copies.Close()
	if _, err := (Files{{Log, 0}, {Former, 1 << 20}}).Copy(); !errors.Is(err, unix.EBADF) {
		t.Errorf("of a closed one: error %v", err)
	}
	if now := openFDs(t); now != before {
		t.Errorf("%d descriptors are open, %d were", now, before)
	}
}

func TestCheckFiles(t *testing.T) {
	need, may := []Role{Log, "stdout"}, []Role{Former, Kept}
	good := Files{{Former, 3}, {"stdout", 4}, {Former, 5}, {Kept.Of("a"), 6}, {Kept.Of("b"), 7}, {Log, 8}}
	if err := good.Check(need, may); err != nil {
		t.Error(err)
	}

	for name, test := range map[string]struct {
		files Files
		want  string
	}{
		"none":           {nil, `descriptor "log" is missing`},
		"missing":        {good[:5], `descriptor "log" is missing`},
		"unknown":        {append(good[:6:6], File{"stdout/color", 9}), `unexpected descriptor "stdout/color"`},
		"not expected":   {append(good[:6:6], File{PidFD, 9}), `unexpected descriptor "pidfd"`},
		"twice":          {append(good[:6:6], File{Log, 9}), `duplicate descriptor "log"`},
		"a member twice": {append(good[:6:6], File{Kept.Of("a"), 9}), `duplicate descriptor "keep/a"`},
		"no name":        {append(good[:6:6], File{Kept, 9}), `unexpected descriptor "keep/"`},
		"no role":        {append(good[:6:6], File{"", 9}), `unexpected descriptor ""`},
	} {
		if err := test.files.Check(need, may); err == nil || err.Error() != test.want {
			t.Errorf("%s: error %v, want %s", name, err, test.want)
		}
	}
}

func TestRolesRoundTrip(t *testing.T) {
	var many Files
	for range maxFiles {
		many.Add(Input, -1)
	}
	for _, files := range []Files{nil, {{Log, -1}}, {{Plan, -1}, {Input, -1}, {Input, -1}, {Log, -1}, {Input, -1}}, many} {
		var w pack.Writer
		files.PutRoles(&w)
		if len(w.Bytes()) > 64 {
			t.Errorf("%d roles take up %d bytes", len(files), len(w.Bytes()))
		}

		r := pack.NewReader(w.Bytes())
		if got, err := TakeRoles(r); err != nil || r.Done() != nil || !reflect.DeepEqual(got, files) {
			t.Errorf("got %v, want %v, error %v", got, files, err)
		}
		for n := range w.Bytes() {
			if _, err := TakeRoles(pack.NewReader(w.Bytes()[:n])); !errors.Is(err, pack.ErrMalformed) {
				t.Errorf("cut to %d bytes: error %v", n, err)
			}
		}
	}

	for name, b := range map[string][]byte{
		"of none": {1, 1, 'x', 0}, "too many": {1, 1, 'x', 0x81, 0x40}, "too many in all": {2, 1, 'x', 0x80, 0x40, 1, 'y', 1},
	} {
		if f, err := TakeRoles(pack.NewReader(b)); !errors.Is(err, pack.ErrMalformed) {
			t.Errorf("%s: %d roles, error %v", name, len(f), err)
		}
	}
}

// TestNumber expects a file to keep its blocking mode.
func TestNumber(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	n, err := Number(r)
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, error %v", flags, err)
	}

	r.Close()
	if _, err := Number(r); err == nil {
		t.Error("a closed file has a number")
	}
}
