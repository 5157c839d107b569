package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

// sysctlRoot has the sysctls that belong to a network namespace.
const sysctlRoot = "/proc/sys/net/"

// Tuning is what is changed of a pod's interface and its namespace. What is zero stays as
// it is.
type Tuning struct {
	// Sysctls are values by name, "net.ipv4.conf.IFNAME.arp_notify", in which IFNAME
	// stands for the interface.
	Sysctls      map[string]string
	MAC          net.HardwareAddr
	MTU          int
	Promiscuous  bool
	AllMulticast *bool
	QueueLength  *int
}

// Untuned is what an interface was before it was tuned, in the form in which the
// reference plugin tuning keeps that.
type Untuned struct {
	MAC          string `json:"mac,omitempty"`
	Promiscuous  *bool  `json:"promisc,omitempty"`
	MTU          int    `json:"mtu,omitempty"`
	AllMulticast *bool  `json:"allmulti,omitempty"`
	QueueLength  *int   `json:"txQLen,omitempty"`
}

// CheckSysctl returns an error unless a name is one of the network's sysctls.
func CheckSysctl(name string) error {
	_, err := sysctlPath(name, "eth0")
	return err
}

// sysctlPath returns the file of a sysctl.
func sysctlPath(name, ifName string) (string, error) {
	path := strings.ReplaceAll(name, ".", "/")
	path = filepath.Join("/proc/sys", strings.Replace(path, "IFNAME", ifName, 1))
	if !strings.HasPrefix(path, sysctlRoot) {
		return "", fmt.Errorf("sysctl %q is not one of the network: those begin with net", name)
	}
	return path, nil
}

// changes reports whether the interface itself is changed.
func (t *Tuning) changes() bool {
	return t.MAC != nil || t.MTU != 0 || t.Promiscuous || t.AllMulticast != nil || t.QueueLength != nil
}

// Before returns what a tuning would change of a pod's interface. It returns false if that
// is nothing.
func (t *Tuning) Before(pod *os.File, ifName string) (Untuned, bool, error) {
	if !t.changes() {
		return Untuned{}, false, nil
	}
	var u Untuned
	err := withPods(pod, ifName, func(_ *netlink.Handle, l netlink.Link) error {
		a := l.Attrs()
		if t.MAC != nil {
			u.MAC = a.HardwareAddr.String()
		}
		if t.MTU != 0 {
			u.MTU = a.MTU
		}

		if t.Promiscuous {
			is := a.Promisc != 0
			u.Promiscuous = &is
		}
		if t.AllMulticast != nil {
			is := allMulticast(l)
			u.AllMulticast = &is
		}
		if t.QueueLength != nil {
			u.QueueLength = &a.TxQLen
		}
		return nil
	})
	return u, err == nil, err
}

// withPods runs f in a pod's namespace, with its interface.
func withPods(pod *os.File, ifName string, f func(*netlink.Handle, netlink.Link) error) error {
	return netns.Do(pod, func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in the pod: %w", err)
		}
		defer handle.Close()
		l, err := handle.LinkByName(ifName)
		if isNotFound(err) {
			return fmt.Errorf("%w: the pod has no interface %s", ErrBroken, ifName)
		}
		if err != nil {
			return fmt.Errorf("look for interface %s in the pod: %w", ifName, err)
		}
		return f(handle, l)
	})
}

func allMulticast(l netlink.Link) bool { return l.Attrs().RawFlags&unix.IFF_ALLMULTI != 0 }

// Apply changes a pod's interface and sysctls.
func (t *Tuning) Apply(pod *os.File, ifName string) error {
	return withPods(pod, ifName, func(handle *netlink.Handle, l netlink.Link) error {
		for name, value := range t.Sysctls {
			if err := writeSysctl(name, ifName, value); err != nil {
				return err
			}
		}
		var promiscuous *bool
		if t.Promiscuous {
			promiscuous = &t.Promiscuous
		}
		return change(handle, l, t.MAC, t.MTU, promiscuous, t.AllMulticast, t.QueueLength)
	})
}

// Restore makes a pod's interface what it was. It is not an error if there is none.
func (u *Untuned) Restore(pod *os.File, ifName string) error {
	var mac net.HardwareAddr
	if u.MAC != "" {
		var err error
		if mac, err = net.ParseMAC(u.MAC); err != nil {
			return fmt.Errorf("restore interface %s: %w", ifName, err)
		}
	}
	err := withPods(pod, ifName, func(handle *netlink.Handle, l netlink.Link) error {
		return change(handle, l, mac, u.MTU, u.Promiscuous, u.AllMulticast, u.QueueLength)
	})
	if errors.Is(err, ErrBroken) {
		return nil
	}
	return err
}

// writeSysctl writes a sysctl of the calling thread's namespace.
func writeSysctl(name, ifName, value string) error {
	path, err := sysctlPath(name, ifName)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl %s of the pod: %w", name, err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s of the pod to %q: %w", name, value, err)
	}
	return nil
}

// change changes what is not zero of an interface, as far as it can.
func change(handle *netlink.Handle, l netlink.Link, mac net.HardwareAddr, mtu int, promiscuous, multicast *bool, queue *int) error {
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s of interface %s: %w", what, l.Attrs().Name, err))
		}
	}

	if mac != nil {
		note("hardware address", handle.LinkSetHardwareAddr(l, mac))
	}
	if promiscuous != nil {
		set := handle.SetPromiscOff
		if *promiscuous {
			set = handle.SetPromiscOn
		}
		note("promiscuous mode", set(l))
	}
	if mtu != 0 {
		note("MTU", handle.LinkSetMTU(l, mtu))
	}
	if multicast != nil {
		set := handle.LinkSetAllmulticastOff
		if *multicast {
			set = handle.LinkSetAllmulticastOn
		}
		note("all-multicast mode", set(l))
	}
	if queue != nil {
		note("length of the queue", handle.LinkSetTxQLen(l, *queue))
	}
	return errors.Join(errs...)
}

// Check returns [ErrBroken] unless a pod has what [Tuning.Apply] made.
func (t *Tuning) Check(pod *os.File, ifName string) error {
	return withPods(pod, ifName, func(_ *netlink.Handle, l netlink.Link) error {
		a := l.Attrs()
		for what, changed := range map[string]bool{
			"hardware address":    t.MAC != nil && t.MAC.String() != a.HardwareAddr.String(),
			"MTU":                 t.MTU != 0 && t.MTU != a.MTU,
			"promiscuous mode":    t.Promiscuous && a.Promisc == 0,
			"all-multicast mode":  t.AllMulticast != nil && *t.AllMulticast != allMulticast(l),
			"length of the queue": t.QueueLength != nil && *t.QueueLength != a.TxQLen,
		} {
			if changed {
				return fmt.Errorf("%w: %s has lost its %s", ErrBroken, ifName, what)
			}
		}

		for name, want := range t.Sysctls {
			path, err := sysctlPath(name, ifName)
			if err != nil {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read sysctl %s of the pod: %w", name, err)
			}
			// The kernel separates several values by tabs.
			if !slices.Equal(strings.Fields(string(text)), strings.Fields(want)) {
				return fmt.Errorf("%w: the sysctl %s is %q and not %q", ErrBroken, name, strings.TrimSpace(string(text)), want)
			}
		}
		return nil
	})
}
