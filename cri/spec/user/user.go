// Package user resolves the users and groups of an image from its own
// /etc/passwd and /etc/group.
//
// Both files, and the string that names the user, come from the image and are
// hostile. The files are opened inside the image's root and must be regular and
// of bounded size. They are read line by line for every query, in at most 1 MiB
// of memory. A name that consists of digits is a number and is never looked up;
// a number that is out of range is an error, without any fallback
// (CVE-2016-3697).
package user

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"crisp/runtime/rootpath"
)

const (
	// MaxID is the largest user or group id.
	MaxID = 1<<31 - 1

	maxFile = 8 << 20
	maxLine = 1 << 20
	// maxGroups bounds the groups that an image's file gives to a user. The kernel
	// would accept 65536, which would have to be stored for every container.
	maxGroups = 4096
	// maxNumber is the maximum length of a number.
	maxNumber = 64
)

// The errors of this package.
var (
	// ErrSyntax means that a string does not name a user.
	ErrSyntax = errors.New("malformed user")
	// ErrUnknown means that the image has no user or group of that name.
	ErrUnknown = errors.New("no such user or group in the image")
)

// ID is a user or a group, by number or by name.
type ID struct {
	// Name is set if the ID is given by name.
	Name   string
	Number uint32
}

// Name is a parsed USER string of an image.
type Name struct {
	User ID
	// Group is nil if the string names none.
	Group *ID
}

// Parse parses the forms "user", "user:group" and ":group", in which either
// part is a number or a name. A missing user is root.
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

// parseID distinguishes numbers from names. What begins like a number must be
// one.
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

// Database answers queries from an image's files, of which the first matching
// line applies. It must be closed with [Database.Close].
type Database struct {
	// A file that is missing is nil.
	passwd, group io.ReaderAt
	files         []*os.File
}

// Open opens the files of the image with the given root. A missing file is an
// empty one.
func Open(root *os.File) (*Database, error) {
	d := &Database{}
	for path, to := range map[string]*io.ReaderAt{passwdFile: &d.passwd, groupFile: &d.group} {
		f, err := rootpath.OpenRegular(root, path, maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open %s of the image: %w", path, err), d.Close())
		}
		d.files = append(d.files, f)
		*to = f
	}
	return d, nil
}

// Close closes the files.
func (d *Database) Close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// eachLine calls do with each line that is not empty or a comment, until it
// returns false. A line is only valid during the call.
func eachLine(path string, file io.ReaderAt, do func(line []byte) (more bool)) error {
	if file == nil {
		return nil
	}
	s := bufio.NewScanner(io.NewSectionReader(file, 0, maxFile))
	s.Buffer(nil, maxLine)

	for s.Scan() {
		line := bytes.TrimSpace(s.Bytes())
		if len(line) > 0 && line[0] != '#' && !do(line) {
			return nil
		}
	}

	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %s of the image: %w", ErrSyntax, path, err)
	}
	return nil
}

// fields splits a line at its colons into the given slice, returns the number
// of fields, and ignores those beyond.
func fields(line []byte, to [][]byte) int {
	for i := range to {
		field, rest, more := bytes.Cut(line, []byte(":"))
		to[i], line = field, rest
		if !more {
			return i + 1
		}
	}
	return len(to)
}

func parseBytes(b []byte) (uint32, bool) {
	if len(b) > maxNumber {
		return 0, false
	}
	n, err := parseNumber(string(b))
	return n, err == nil
}

// Account returns the account of a user, from lines of
// name:password:uid:gid:comment:home:shell. Malformed lines are skipped, as by
// the C library. A number without an account is valid: it has group 0 and no
// home.
func (d *Database) Account(id ID) (Account, error) {
	var f [6][]byte
	found, account := false, Account{UID: id.Number}
	err := eachLine(passwdFile, d.passwd, func(line []byte) bool {
		if fields(line, f[:]) < len(f) || len(f[0]) == 0 || id.Name != "" && string(f[0]) != id.Name {
			return true
		}
		uid, ok1 := parseBytes(f[2])
		gid, ok2 := parseBytes(f[3])
		if !ok1 || !ok2 || id.Name == "" && uid != id.Number {
			return true
		}

		found, account = true, Account{Name: string(f[0]), UID: uid, GID: gid, Home: string(f[5])}
		return false
	})
	if err != nil {
		return Account{}, err
	}

	if !found && id.Name != "" {
		return Account{}, fmt.Errorf("%w: user %q", ErrUnknown, id.Name)
	}
	return account, nil
}

// GID returns the number of a group.
func (d *Database) GID(id ID) (uint32, error) {
	if id.Name == "" {
		return id.Number, nil
	}
	found, number := false, uint32(0)
	err := d.eachGroup(func(name []byte, gid uint32, _ []byte) bool {
		if string(name) == id.Name {
			found, number = true, gid
		}
		return !found
	})
	if err != nil {
		return 0, err
	}

	if !found {
		return 0, fmt.Errorf("%w: group %q", ErrUnknown, id.Name)
	}
	return number, nil
}

// GroupsOf returns the groups that list the named user as a member.
func (d *Database) GroupsOf(user string) ([]uint32, error) {
	if user == "" {
		return nil, nil
	}
	var out []uint32
	seen := map[uint32]bool{}
	err := d.eachGroup(func(_ []byte, gid uint32, members []byte) bool {
		if !seen[gid] && isMember(members, user) {
			seen[gid] = true
			out = append(out, gid)
		}
		return len(out) <= maxGroups
	})
	if err != nil {
		return nil, err
	}

	if len(out) > maxGroups {
		return nil, fmt.Errorf("%w: user %q is in more than %d groups of the image", ErrSyntax, user, maxGroups)
	}
	return out, nil
}

// eachGroup calls do with lines of name:password:gid:member,member.
func (d *Database) eachGroup(do func(name []byte, gid uint32, members []byte) (more bool)) error {
	var f [4][]byte
	return eachLine(groupFile, d.group, func(line []byte) bool {
		f[3] = nil
		if fields(line, f[:]) < 3 || len(f[0]) == 0 {
			return true
		}
		gid, ok := parseBytes(f[2])
		return !ok || do(f[0], gid, f[3])
	})
}

func isMember(members []byte, user string) bool {
	for name := range bytes.SplitSeq(members, []byte(",")) {
		if string(name) == user {
			return true
		}
	}
	return false
}
