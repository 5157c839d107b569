package pod

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/cri/spec"
	"crisp/network/netns"
)

// setNetworkSysctls sets what the pod requests of its network once that has its interfaces.
// Those that are not of a single one were set before, too, for the plugins to see.
func (p *pod) setNetworkSysctls() error {
	r := p.record()
	list, err := spec.NetworkSysctls(r.Config.Msg)
	if err != nil || len(list) == 0 {
		return err
	}

	// Below /proc/sys/net a thread sees the settings of the network that it is in.
	return netns.Do(p.namespace("net"), func() error {
		for _, s := range list {
			err := setSysctl(s[0], s[1])
			switch {
			case errors.Is(err, os.ErrNotExist):
				return fmt.Errorf("set sysctl %s: %w: the pod's network has none of this name", s[0], ErrInvalid)
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
				return fmt.Errorf("set sysctl %s: %w: the kernel refuses %q", s[0], ErrInvalid, s[1])
			case err != nil:
				return fmt.Errorf("set sysctl %s to %q: %w", s[0], s[1], err)
			}
		}
		return nil
	})
}

// setSysctl writes one setting, in one call as the kernel wants it, unless it has the value:
// reading works where /proc/sys is read-only, as in a container.
func setSysctl(path, value string) error {
	path = "/proc/sys/" + path
	if old, err := os.ReadFile(path); err == nil && slices.Equal(strings.Fields(string(old)), strings.Fields(value)) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
