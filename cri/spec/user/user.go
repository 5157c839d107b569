// Package user resolves the users and groups of an image from its own
// /etc/passwd and /etc/group.
//
// Both files, and the string that names the user, come from the image and are
// hostile. The files are opened inside the image's root, must be regular and
// have a bounded size; a name that consists of digits is a number and never
// looked up; a number that does not fit is an error and never falls back to
// anything.
package user

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"crisp/runtime/rootpath"
)

const (
	// MaxID is the largest user or group id.
	MaxID = 1<<31 - 1

	maxFile = 8 << 20
	maxLine = 1 << 20
	// maxGroups is the kernel's limit of supplementary groups.
	maxGroups = 65536
)

// The errors of this package.
var (
	// ErrSyntax means that a string does not name a user.
	ErrSyntax = errors.New("malformed user")
	// ErrUnknown means that the image has no user or group of that name.
	ErrUnknown = errors.New("no such user or group in the image")
)

// ID is a user or a group by number or by name.
type ID struct {
	// Name is set if the id is given by name.
	Name   string
	Number uint32
}

// Name tells what an image's USER string names.
type Name struct {
	User ID
	// Group is nil if the string names none.
	Group *ID
}

// Parse reads the forms "user", "user:group" and ":group", either part being
// a number or a name. Nothing stands for the user root.
func Parse(s string) (Name, error) {
	var n Name
	user, group, _ := strings.Cut(s, ":")
	var err error
	if user != "" {
		if n.User, err = parseID(user); err != nil {
			return n, err
		}
	}
	if group != "" {
		id, err := parseID(group)
		if err != nil {
			return n, err
		}
		n.Group = &id
	}
	return n, nil
}

// parseID tells numbers from names. What begins like a number must be one.
func parseID(s string) (ID, error) {
	if strings.ContainsAny(s, ":\x00\n\r/") {
		return ID{}, fmt.Errorf("%w: %q", ErrSyntax, s)
	}
	if strings.Trim(s, "0123456789") != "" {
		if s[0] == '-' || s[0] == '+' {
			return ID{}, fmt.Errorf("%w: %q", ErrSyntax, s)
		}
		return ID{Name: s}, nil
	}
	n, err := parseNumber(s)
	if err != nil {
		return ID{}, fmt.Errorf("%w: id %s is larger than %d", ErrSyntax, s, MaxID)
	}
	return ID{Number: n}, nil
}

func parseNumber(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// Account is a line of /etc/passwd.
type Account struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Group is a line of /etc/group.
type Group struct {
	Name    string
	GID     uint32
	Members []string
}

// Database holds an image's accounts and groups, in file order.
type Database struct {
	Accounts []Account
	Groups   []Group
}

// Load reads the files of the image with the given root. A missing file is an
// empty one.
func Load(root *os.File) (*Database, error) {
	passwd, err := readFile(root, "/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readFile(root, "/etc/group")
	if err != nil {
		return nil, err
	}
	d := &Database{}
	if d.Accounts, err = ParsePasswd(passwd); err != nil {
		return nil, fmt.Errorf("parse /etc/passwd of the image: %w", err)
	}
	if d.Groups, err = ParseGroup(group); err != nil {
		return nil, fmt.Errorf("parse /etc/group of the image: %w", err)
	}
	return d, nil
}

func readFile(root *os.File, path string) ([]byte, error) {
	data, err := rootpath.ReadFile(root, path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", path, err)
	}
	return data, nil
}

// ParsePasswd reads lines of name:password:uid:gid:comment:home:shell. Lines
// that are not well formed are skipped, as the C library does.
func ParsePasswd(data []byte) ([]Account, error) {
	var out []Account
	err := eachLine(data, func(f []string) {
		if len(f) < 6 || f[0] == "" {
			return
		}
		uid, err1 := parseNumber(f[2])
		gid, err2 := parseNumber(f[3])
		if err1 == nil && err2 == nil {
			out = append(out, Account{Name: f[0], UID: uid, GID: gid, Home: f[5]})
		}
	})
	return out, err
}

// ParseGroup reads lines of name:password:gid:member,member.
func ParseGroup(data []byte) ([]Group, error) {
	var out []Group
	err := eachLine(data, func(f []string) {
		if len(f) < 3 || f[0] == "" {
			return
		}
		gid, err := parseNumber(f[2])
		if err != nil {
			return
		}
		g := Group{Name: f[0], GID: gid}
		if len(f) > 3 && f[3] != "" {
			g.Members = strings.Split(f[3], ",")
		}
		out = append(out, g)
	})
	return out, err
}

func eachLine(data []byte, do func(fields []string)) error {
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Buffer(nil, maxLine)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line != "" && line[0] != '#' {
			do(strings.Split(line, ":"))
		}
	}
	return s.Err()
}

// Account returns the account of a user. A number need not have one: it then
// has group 0 and no home.
func (d *Database) Account(id ID) (Account, error) {
	for _, a := range d.Accounts {
		if id.Name != "" && a.Name == id.Name || id.Name == "" && a.UID == id.Number {
			return a, nil
		}
	}
	if id.Name != "" {
		return Account{}, fmt.Errorf("%w: user %q", ErrUnknown, id.Name)
	}
	return Account{UID: id.Number}, nil
}

// GID returns the number of a group.
func (d *Database) GID(id ID) (uint32, error) {
	if id.Name == "" {
		return id.Number, nil
	}
	for _, g := range d.Groups {
		if g.Name == id.Name {
			return g.GID, nil
		}
	}
	return 0, fmt.Errorf("%w: group %q", ErrUnknown, id.Name)
}

// GroupsOf returns the groups that list the named user as a member.
func (d *Database) GroupsOf(user string) ([]uint32, error) {
	if user == "" {
		return nil, nil
	}
	var out []uint32
	seen := map[uint32]bool{}
	for _, g := range d.Groups {
		if seen[g.GID] || !slices.Contains(g.Members, user) {
			continue
		}
		seen[g.GID] = true
		out = append(out, g.GID)
		if len(out) > maxGroups {
			return nil, fmt.Errorf("%w: user %q is in more than %d groups", ErrSyntax, user, maxGroups)
		}
	}
	return out, nil
}
