package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountOptions are the parsed options of a mount.
type mountOptions struct {
	// set and clear are MOUNT_ATTR_* of the mount.
	set, clear uint64
	// all are those of the whole tree, applied after.
	all attrs
	// propagation is MS_*; with ownOnly not for the mounts below.
	propagation     uint64
	ownOnly         bool
	bind, recursive bool
	// idmap: its IDs are mapped, with idmapAll also those of the mounts below.
	idmap, idmapAll bool
	// copyUp: the file system starts as a copy of the target directory.
	copyUp bool
	// data are the file system's own options.
	data []fsOption
}

// attrs are MOUNT_ATTR_* bits as mount_setattr takes them.
type attrs struct{ set, clear uint64 }

// attr is a mount attribute that an option sets or clears.
type attr struct {
	bits  uint64
	clear bool
}

// optionAttrs has the attributes by option. The access time options are
// mutually exclusive and replace each other.
var optionAttrs = map[string]attr{
	"ro": {bits: unix.MOUNT_ATTR_RDONLY}, "rw": {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid": {bits: unix.MOUNT_ATTR_NOSUID}, "suid": {unix.MOUNT_ATTR_NOSUID, true},
	"nodev": {bits: unix.MOUNT_ATTR_NODEV}, "dev": {unix.MOUNT_ATTR_NODEV, true},
	"noexec": {bits: unix.MOUNT_ATTR_NOEXEC}, "exec": {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime": {bits: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {bits: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
	"noatime": {bits: unix.MOUNT_ATTR_NOATIME}, "atime": {unix.MOUNT_ATTR_NOATIME, true},
	"strictatime": {bits: unix.MOUNT_ATTR_STRICTATIME}, "nostrictatime": {unix.MOUNT_ATTR_STRICTATIME, true},
	"relatime": {bits: unix.MOUNT_ATTR_RELATIME}, "norelatime": {unix.MOUNT_ATTR_RELATIME, true},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
}

const atimes = unix.MOUNT_ATTR__ATIME

// apply adds an option for the whole tree. Access times are a number, not bits:
// clearing one leaves the default, relatime.
func (s *attrs) apply(a attr) {
	switch {
	case a.bits == 0 || a.bits&atimes != 0:
		s.set &^= atimes
		s.clear |= atimes
		if !a.clear {
			s.set |= a.bits
		}
	case a.clear:
		s.set &^= a.bits
		s.clear |= a.bits
	default:
		s.clear &^= a.bits
		s.set |= a.bits
	}
}

// mount returns the final attributes of a mount without mounts below it.
func (o *mountOptions) mount() uint64 { return o.set&^o.all.clear | o.all.set }

// ofSuperblock are superblock options, which mount(8) accepts for any file
// system. A bind mount cannot change them; they are ignored there.
var ofSuperblock = []string{"sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"}

// ofMountCommand are options for mount(8) that a file system does not know.
var ofMountCommand = []string{"", "defaults", "bind", "silent", "loud", "iversion", "noiversion"}

func (o *mountOptions) apply(a attr) {
	if a.clear {
		o.set &^= a.bits
		if a.bits&atimes == 0 {
			o.clear |= a.bits
		}
		return
	}
	if a.bits == 0 || a.bits&atimes != 0 {
		o.set &^= atimes
		o.clear |= atimes
	} else {
		o.clear &^= a.bits
	}
	o.set |= a.bits
}

// withMode adds the permissions of a tmpfs's root, unless they are set.
func withMode(data []fsOption, mode uint32) []fsOption {
	if slices.ContainsFunc(data, func(o fsOption) bool { return o.key == "mode" }) {
		return data
	}
	return append(slices.Clone(data), fsOption{key: "mode", value: fmt.Sprintf("%04o", mode)})
}

// CopyUp reports whether a mount is a tmpfs that starts as a copy of its target
// (tmpcopyup), and returns its file system options by name, without the label.
func CopyUp(m *specs.Mount) (options map[string]string, ok bool, err error) {
	if m.Type != "tmpfs" || !slices.Contains(m.Options, "tmpcopyup") {
		return nil, false, nil
	}
	o, err := parseOptions(m.Options, false)
	if err != nil || o.bind {
		return nil, false, err
	}

	options = map[string]string{}
	if m.Source != "" {
		options["source"] = m.Source
	}

	for _, f := range o.data {
		options[f.key] = f.value
	}
	return options, true, nil
}

// parseOptions reads the options of a mount. Unknown ones are the file
// system's, and an error for a bind mount, which has none.
func parseOptions(options []string, bind bool) (mountOptions, error) {
	o := mountOptions{bind: bind}
	for _, opt := range options {
		if opt == "bind" || opt == "rbind" {
			o.bind = true
		}
	}

	for _, opt := range options {
		if err := o.parse(opt); err != nil {
			return o, err
		}
	}

	if o.bind && len(o.data) > 0 {
		return o, fmt.Errorf("%w: unknown option %q", ErrSpec, o.data[0].key)
	}
	return o, nil
}

func (o *mountOptions) parse(opt string) error {
	if a, ok := optionAttrs[opt]; ok {
		o.apply(a)
		return nil
	}

	plain, all := strings.CutPrefix(opt, "r")
	if !all {
		plain = opt
	}
	if p, ok := propagations[plain]; ok {
		o.propagation, o.ownOnly = p, !all
		return nil
	}

	if a, ok := optionAttrs[plain]; ok && all {
		o.all.apply(a)
		return nil
	}

	if slices.Contains(ofMountCommand, opt) || o.bind && slices.Contains(ofSuperblock, opt) {
		return nil
	}
	switch opt {
	case "rbind":
		o.recursive = true
	case "idmap":
		o.idmap = true
	case "ridmap":
		o.idmap, o.idmapAll = true, true
	case "tmpcopyup":
		o.copyUp = true
	case "remount":
		return fmt.Errorf("%w: mount option %q", ErrUnsupported, opt)
	default:
		key, value, has := strings.Cut(opt, "=")
		o.data = append(o.data, fsOption{key: key, value: value, flag: !has})
	}

	return nil
}
