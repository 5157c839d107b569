package rootpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Extended attributes that name users.
const (
	capability = "security.capability"
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// The kernel's bounds of extended attributes, from linux/limits.h.
const (
	maxXattrNames = 64 << 10
	maxXattrValue = 64 << 10
)

// attributes gives a copied file or directory the owner, mode, extended
// attributes and times of its source.
func (c *copying) attributes(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}

	// The order matters: chown clears set-user-ID bits and capabilities, and
	// every change sets the times.
	uid, gid := c.own(st.Uid, st.Gid)
	if err := unix.Fchown(int(to.Fd()), uid, gid); err != nil {
		return err
	}

	if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	if err := c.xattrs(from, to); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(to.Fd()), "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// xattrs copies the extended attributes that belong to the content. One that the
// file system of the copy does not support is skipped.
func (c *copying) xattrs(from, to *os.File) error {
	return EachAttribute(from, c.own, func(name string, value []byte) error {
		err := unix.Fsetxattr(int(to.Fd()), name, value, 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("copy attribute %.100q: %w", name, err)
		}
		return nil
	})
}

// EachAttribute calls use with each extended attribute of a file that belongs to its
// content, with the users in it translated by owner. The node's own, such as labels, are
// not among them, nor is one that the file has lost meanwhile. A value is valid until use
// returns: a file may have hundreds of megabytes of them.
func EachAttribute(f *os.File, owner func(uid, gid uint32) (int, int), use func(name string, value []byte) error) error {
	from, c := int(f.Fd()), copying{own: owner}
	// Most files have none; one call is enough for them.
	size, err := unix.Flistxattr(from, nil)
	if size == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil
	}

	names := make([]byte, maxXattrNames)
	if size, err = unix.Flistxattr(from, names); err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}

	value := make([]byte, maxXattrValue)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		if !IsContent(name) {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read attribute %.100q: %w", name, err)
		}
		if err := use(name, c.translate(name, value[:n])); err != nil {
			return err
		}
	}

	return nil
}

// IsContent reports whether an extended attribute belongs to a file's content,
// and was not set by the node.
func IsContent(name string) bool {
	switch name {
	case capability, aclAccess, aclDefault:
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// TranslateAttribute returns the value of an extended attribute with the users in it
// translated by owner: those of access control lists and of file capabilities.
func TranslateAttribute(name string, value []byte, owner func(uid, gid uint32) (int, int)) []byte {
	c := copying{own: owner}
	return c.translate(name, value)
}

// translate returns the value of an extended attribute with the users in it
// translated for the copy.
func (c *copying) translate(name string, value []byte) []byte {
	switch name {
	case capability:
		return c.capabilities(value)
	case aclAccess, aclDefault:
		return c.acl(value)
	}
	return value
}

// The formats of file capabilities, from linux/capability.h: a word of revision
// and flags, two pairs of words, and in revision 3 the root of the user
// namespace for which they are valid.
const (
	capRevision  = 0xff000000
	capRevision2 = 0x02000000
	capRevision3 = 0x03000000
	capSize2     = 20
	capSize3     = 24
)

// capabilities translates the root user of the namespace for which file
// capabilities are valid.
func (c *copying) capabilities(value []byte) []byte {
	if len(value) != capSize2 && len(value) != capSize3 {
		return value
	}
	var root uint32

	if len(value) == capSize3 {
		root = binary.LittleEndian.Uint32(value[capSize2:])
	}
	uid, _ := c.own(root, 0)

	out := append(make([]byte, 0, capSize3), value[:capSize2]...)
	flags := binary.LittleEndian.Uint32(out) &^ capRevision
	if uid == 0 {
		binary.LittleEndian.PutUint32(out, flags|capRevision2)
		return out
	}

	binary.LittleEndian.PutUint32(out, flags|capRevision3)
	return binary.LittleEndian.AppendUint32(out, uint32(uid))
}

// The format of an access control list, from linux/posix_acl_xattr.h: a word of
// version, then entries of tag, permissions and ID.
const (
	aclHead  = 4
	aclEntry = 8
	aclUser  = 0x02
	aclGroup = 0x08
)

// acl translates the users and groups that an access control list names.
func (c *copying) acl(value []byte) []byte {
	out := append([]byte(nil), value...)
	for at := aclHead; at+aclEntry <= len(out); at += aclEntry {
		entry := out[at : at+aclEntry]
		id := binary.LittleEndian.Uint32(entry[4:])
		uid, gid := c.own(id, id)
		switch binary.LittleEndian.Uint16(entry) {
		case aclUser:
			binary.LittleEndian.PutUint32(entry[4:], uint32(uid))
		case aclGroup:
			binary.LittleEndian.PutUint32(entry[4:], uint32(gid))
		}
	}
	return out
}
