package user

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crisp/runtime/rootpath"
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

func database(t *testing.T) *Database {
	t.Helper()
	accounts, err1 := ParsePasswd([]byte(passwd))
	groups, err2 := ParseGroup([]byte(group))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &Database{Accounts: accounts, Groups: groups}
}

func TestAccount(t *testing.T) {
	d := database(t)
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
	d := database(t)
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

func TestLoad(t *testing.T) {
	dir, f := root(t)
	if d, err := Load(f); err != nil || len(d.Accounts)+len(d.Groups) != 0 {
		t.Errorf("Load() of an image without files = %+v, %v", d, err)
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
	d, err := Load(f)
	if err != nil || len(d.Accounts) != 5 || len(d.Groups) != 0 {
		t.Errorf("Load() = %+v, %v", d, err)
	}
}

// TestLoadStaysInside links the files of the image to those of the machine.
func TestLoadStaysInside(t *testing.T) {
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
		if d, err := Load(f); err == nil && len(d.Accounts) > 0 {
			t.Errorf("Load() followed %s out of the image", target)
		}
	}
}

func TestLoadRefusesQuickly(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"FIFO":   func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"folder": func(p string) error { return os.Mkdir(p, 0o755) },
		"sparse giant": func(p string) error {
			f, err := os.Create(p)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(5 << 30)
		},
		"long line": func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), maxLine+1), 0o644) },
	} {
		for _, file := range []string{"passwd", "group"} {
			dir, f := root(t)
			if err := make(filepath.Join(dir, "etc", file)); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := Load(f); err == nil {
				t.Errorf("Load() with a %s at %s succeeded", name, file)
			} else if name == "FIFO" && !errors.Is(err, rootpath.ErrNotRegular) {
				t.Errorf("Load() with a FIFO = %v", err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("Load() with a %s took %v", name, took)
			}
		}
	}
}

// TestHostileSize resolves a user against the largest files allowed.
func TestHostileSize(t *testing.T) {
	var b bytes.Buffer
	for i := 0; b.Len() < maxFile-32; i++ {
		fmt.Fprintf(&b, "g%d::%d:u\n", i, i)
	}
	start := time.Now()
	groups, err := ParseGroup(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	d := Database{Groups: groups}
	if _, err := d.GroupsOf("u"); !errors.Is(err, ErrSyntax) {
		t.Errorf("GroupsOf() with %d groups = %v, want ErrSyntax", len(groups), err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
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

func FuzzFiles(f *testing.F) {
	f.Add([]byte(passwd), []byte(group), "app")
	f.Fuzz(func(t *testing.T, passwd, group []byte, name string) {
		accounts, err1 := ParsePasswd(passwd)
		groups, err2 := ParseGroup(group)
		if err1 != nil || err2 != nil {
			return
		}
		d := &Database{Accounts: accounts, Groups: groups}
		for _, a := range accounts {
			if a.UID > MaxID || a.GID > MaxID || a.Name == "" || strings.ContainsAny(a.Name+a.Home, ":\n") {
				t.Errorf("account %+v", a)
			}
		}
		for _, g := range groups {
			if g.GID > MaxID || g.Name == "" {
				t.Errorf("group %+v", g)
			}
		}
		if a, err := d.Account(ID{Name: name}); name != "" && err == nil && a.Name != name {
			t.Errorf("Account(%q) = %+v", name, a)
		}
		if _, err := d.GroupsOf(name); err != nil && !errors.Is(err, ErrSyntax) {
			t.Error(err)
		}
	})
}
