package user

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crisp/runtime/rootpath"
	"crisp/test/testkit/pace"
)

func TestParse(t *testing.T) {
	group := func(id ID) *ID { return &id }
	for s, want := range map[string]Name{
		"":                {},
		"0":               {},
		"00":              {},
		"1000":            {User: ID{Number: 1000}},
		"1000:50":         {User: ID{Number: 1000}, Group: group(ID{Number: 50})},
		"app":             {User: ID{Name: "app"}},
		"app:staff":       {User: ID{Name: "app"}, Group: group(ID{Name: "staff"})},
		"app:":            {User: ID{Name: "app"}},
		":7":              {Group: group(ID{Number: 7})},
		":":               {},
		"2147483647":      {User: ID{Number: MaxID}},
		"0x0":             {User: ID{Name: "0x0"}},
		"1e3":             {User: ID{Name: "1e3"}},
		"user-1.x_y$":     {User: ID{Name: "user-1.x_y$"}},
		"000000000000005": {User: ID{Number: 5}},
	} {
		got, err := Parse(s)
		if err != nil || got.User != want.User || (got.Group == nil) != (want.Group == nil) || got.Group != nil && *got.Group != *want.Group {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", s, got, err, want)
		}
	}

	for _, s := range []string{
		"2147483648", "4294967295", "4294967296", "18446744073709551616", strings.Repeat("9", 100), "-1", "+1", "1000:-1",
		"0:2147483648", "a:b:c", "a\nb", "a\x00", "a/b", "1000:a:b",
	} {
		if got, err := Parse(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("Parse(%q) = %+v, %v, want ErrSyntax", s, got, err)
		}
	}
}

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment
4294967296:x:0:0::/:/bin/sh
app:x:1000:1000:App:/home/app:/bin/sh

broken:x:abc:0::/:/bin/sh
short:x:1
big:x:4294967296:0::/big:/bin/sh
second:x:1000:2000::/home/second:/bin/sh
noshell:x:7:7::/n
:x:9:9::/:/bin/sh
`

const group = `root:x:0:
staff:x:50:app,other
dup:x:50:app
wheel:x:10:app
short:x
broken:x:-1:app
big:x:4294967296:app
nomembers:x:60
`

func database() *Database { return of([]byte(passwd), []byte(group)) }

func of(passwd, group []byte) *Database {
	return &Database{passwd: bytes.NewReader(passwd), group: bytes.NewReader(group)}
}

func TestAccount(t *testing.T) {
	d := database()
	for _, tt := range []struct {
		id   ID
		want Account
	}{
		{ID{}, Account{"root", 0, 0, "/root"}},
		{ID{Name: "app"}, Account{"app", 1000, 1000, "/home/app"}},
		{ID{Number: 1000}, Account{"app", 1000, 1000, "/home/app"}},
		{ID{Name: "second"}, Account{"second", 1000, 2000, "/home/second"}},
		{ID{Number: 4242}, Account{UID: 4242}},
		{ID{Name: "noshell"}, Account{"noshell", 7, 7, "/n"}},
	} {
		if got, err := d.Account(tt.id); err != nil || got != tt.want {
			t.Errorf("Account(%+v) = %+v, %v, want %+v", tt.id, got, err, tt.want)
		}
	}

	for _, name := range []string{"ghost", "broken", "short", "big"} {
		if got, err := d.Account(ID{Name: name}); !errors.Is(err, ErrUnknown) {
			t.Errorf("Account(%s) = %+v, %v, want ErrUnknown", name, got, err)
		}
	}
}

func TestGroups(t *testing.T) {
	d := database()
	if got, err := d.GroupsOf("app"); err != nil || !slices.Equal(got, []uint32{50, 10}) {
		t.Errorf("GroupsOf(app) = %v, %v", got, err)
	}

	if got, err := d.GroupsOf(""); err != nil || got != nil {
		t.Errorf("GroupsOf of nobody = %v, %v", got, err)
	}
	if got, err := d.GID(ID{Name: "staff"}); err != nil || got != 50 {
		t.Errorf("GID(staff) = %d, %v", got, err)
	}

	if got, err := d.GID(ID{Number: 77}); err != nil || got != 77 {
		t.Errorf("GID(77) = %d, %v", got, err)
	}
	if _, err := d.GID(ID{Name: "ghost"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("GID(ghost): %v", err)
	}
}

// root makes an image's root with an empty /etc.
func root(t *testing.T) (dir string, f *os.File) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return dir, f
}

// load opens the files of an image and asks for everything.
func load(t *testing.T, f *os.File, name string) (Account, []uint32, error) {
	t.Helper()
	d, err := Open(f)
	if err != nil {
		return Account{}, nil, err
	}
	defer d.Close()
	a, err1 := d.Account(ID{Name: name})
	groups, err2 := d.GroupsOf(name)
	return a, groups, errors.Join(err1, err2)
}

func TestOpen(t *testing.T) {
	dir, f := root(t)
	d, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()

	if a, err := d.Account(ID{}); err != nil || a != (Account{}) {
		t.Errorf("Account() of an image without files = %+v, %v", a, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "real"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}

	// Absolute links stay inside of the image.
	if err := os.Symlink("/real", filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}

	if err := os.Symlink("/etc/no-such-file", filepath.Join(dir, "etc/group")); err != nil {
		t.Fatal(err)
	}
	if a, groups, err := load(t, f, "app"); err != nil || a.UID != 1000 || groups != nil {
		t.Errorf("app is %+v in %v, %v", a, groups, err)
	}
}

// TestStaysInside links the files of the image to those of the machine.
func TestStaysInside(t *testing.T) {
	dir, f := root(t)
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}

	for _, target := range []string{outside, "../../../../../../../../" + outside} {
		link := filepath.Join(dir, "etc/passwd")
		os.Remove(link)
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if a, _, err := load(t, f, "evil"); !errors.Is(err, ErrUnknown) {
			t.Errorf("followed %s out of the image to %+v, %v", target, a, err)
		}
	}
}

// CVE-2026-47262 and CVE-2025-4437: files of an image that take forever to
// read, or all memory.
func TestCVE202647262UserFiles(t *testing.T) {
	sparse := func(size int64) func(string) error {
		return func(p string) error {
			f, err := os.Create(p)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(size)
		}
	}
	for _, c := range []struct {
		name string
		make func(path string) error
		want error
	}{
		{"FIFO", func(p string) error { return syscall.Mkfifo(p, 0o644) }, rootpath.ErrNotRegular},
		{"directory", func(p string) error { return os.Mkdir(p, 0o755) }, rootpath.ErrNotRegular},
		{"sparse 5 GB", sparse(5 << 30), rootpath.ErrTooLarge},
		{"line of 1 GB", sparse(1 << 30), rootpath.ErrTooLarge},
		{"sparse at the limit", sparse(maxFile), ErrSyntax},
		{"long line", func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), maxLine+1), 0o644) }, ErrSyntax},
	} {
		for _, file := range []string{"passwd", "group"} {
			dir, f := root(t)
			if err := c.make(filepath.Join(dir, "etc", file)); err != nil {
				t.Fatal(err)
			}

			start := time.Now()
			if _, _, err := load(t, f, "app"); !errors.Is(err, c.want) {
				t.Errorf("%s at %s: %v, want %v", c.name, file, err, c.want)
			}
			if took := time.Since(start); took > pace.Scale(time.Second) {
				t.Errorf("%s at %s took %v", c.name, file, took)
			}
		}
	}
}

// filled returns as many lines as fit into a file.
func filled(line func(i int) string) []byte {
	var b bytes.Buffer
	for i := 0; ; i++ {
		s := line(i)
		if b.Len()+len(s) > maxFile {
			return b.Bytes()
		}
		b.WriteString(s)
	}
}

// TestHostileSize asks the largest files allowed, eight times at once. The
// answers take no more memory than a line.
func TestHostileSize(t *testing.T) {
	accounts := filled(func(int) string { return "a::1:1::\n" })
	for name, c := range map[string]struct {
		group []byte
		want  error
	}{
		"groups":     {filled(func(i int) string { return fmt.Sprintf("g%d::%d:u\n", i, i) }), ErrSyntax},
		"colons":     {bytes.Repeat([]byte(":"), maxLine-1), nil},
		"members":    {[]byte("g::1:" + strings.Repeat(",", maxLine-10) + "\n"), nil},
		"empty":      {bytes.Repeat([]byte("\n"), maxFile), nil},
		"short ones": {filled(func(int) string { return "a:\n" }), nil},
	} {
		start := time.Now()
		before := allocated()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				d := of(accounts, c.group)
				if _, err := d.Account(ID{Name: "u"}); !errors.Is(err, ErrUnknown) {
					t.Errorf("%s: account: %v", name, err)
				}
				if _, err := d.GroupsOf("u"); !errors.Is(err, c.want) {
					t.Errorf("%s: groups: %v, want %v", name, err, c.want)
				}
			})
		}
		wg.Wait()

		if n := allocated() - before; n > 32<<20 {
			t.Errorf("%s: %d bytes allocated", name, n)
		}
		if took := time.Since(start); took > pace.Scale(10*time.Second) {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// allocated is what was allocated so far, in bytes.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "0", "1000:1000", "app:staff", ":7", "4294967296", "-1", "00", "0x0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}

		for _, id := range []*ID{&n.User, n.Group} {
			if id == nil {
				continue
			}
			if id.Number > MaxID || id.Name != "" && (id.Number != 0 || strings.Trim(id.Name, "0123456789") == "") {
				t.Errorf("Parse(%q) = %+v", s, n)
			}
		}
	})
}

// FuzzFiles compares the answers with those of a simple reader of the files.
func FuzzFiles(f *testing.F) {
	f.Add([]byte(passwd), []byte(group), "app")
	f.Add([]byte("app:x:1:2:::\r\n#app:x:0:0::/:/\n"), []byte("a::1:app\nb::1:app\n"), "app")
	f.Fuzz(func(t *testing.T, passwd, group []byte, name string) {
		if len(passwd)+len(group) > maxLine/2 {
			return
		}
		d := of(passwd, group)
		a, err := d.Account(ID{Name: name})
		want, ok := simpleAccount(string(passwd), name)
		if name != "" && (errors.Is(err, ErrUnknown) == ok || ok && a != want) {
			t.Errorf("Account(%q) = %+v, %v, want %+v, %v", name, a, err, want, ok)
		}

		groups, err := d.GroupsOf(name)
		if err != nil || !slices.Equal(groups, simpleGroups(string(group), name)) {
			t.Errorf("GroupsOf(%q) = %v, %v, want %v", name, groups, err, simpleGroups(string(group), name))
		}
	})
}

func simpleAccount(passwd, name string) (Account, bool) {
	for line := range strings.SplitSeq(passwd, "\n") {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 6 || f[0] != name || strings.HasPrefix(f[0], "#") {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		if err1 == nil && err2 == nil && len(f[2]) <= maxNumber && len(f[3]) <= maxNumber {
			return Account{Name: name, UID: uint32(uid), GID: uint32(gid), Home: f[5]}, true
		}
	}
	return Account{}, false
}

func simpleGroups(group, name string) (list []uint32) {
	for line := range strings.SplitSeq(group, "\n") {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[0] == "" || f[0][0] == '#' || name == "" || !slices.Contains(strings.Split(f[3], ","), name) {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err == nil && len(f[2]) <= maxNumber && !slices.Contains(list, uint32(gid)) {
			list = append(list, uint32(gid))
		}
	}
	return list
}
