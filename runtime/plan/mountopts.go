package plan

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions are the options of a mount, taken apart.
type mountOptions struct {
	// set and clear are MOUNT_ATTR_* of the mount, setAll of the whole tree.
	set, clear, setAll uint64
	propagation        uint64
	bind, recursive    bool
	idmapAll           bool
	// data belongs to the file system.
	data []fsOption
}

// attr is a mount attribute that an option sets or clears.
type attr struct {
	bits  uint64
	clear bool
}

// optionAttrs has the attributes by option. The options that say how access
// times are kept exclude each other and replace one another.
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

// parseOptions reads the options of a mount. What is unknown belongs to the
// file system, and is an error for a bind mount, which has none.
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
		o.propagation = p
		return nil
	}
	if a, ok := optionAttrs[plain]; ok && all {
		if a.clear || a.bits&atimes != 0 || a.bits == 0 {
			return fmt.Errorf("%w: mount option %q", ErrUnsupported, opt)
		}
		o.setAll |= a.bits
		return nil
	}
	switch opt {
	case "", "defaults", "bind", "idmap":
	case "rbind":
		o.recursive = true
	case "ridmap":
		o.idmapAll = true
	case "tmpcopyup", "remount":
		return fmt.Errorf("%w: mount option %q", ErrUnsupported, opt)
	default:
		key, value, has := strings.Cut(opt, "=")
		o.data = append(o.data, fsOption{key: key, value: value, flag: !has})
	}
	return nil
}
