package link

import (
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check returns [ErrBroken] unless an attachment is as [Host.Connect] made it.
func (h *Host) Check(pod *os.File, w Wire) error {
	name := Name(w.ID, w.IfName)
	host, err := h.handle.LinkByName(name)
	if isNotFound(err) {
		return fmt.Errorf("%w: the node has no interface %s", ErrBroken, name)
	}
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", name, err)
	}
	if host.Attrs().Group == dyingGroup || host.Attrs().MasterIndex != w.Bridge {
		return fmt.Errorf("%w: interface %s is detached", ErrBroken, name)
	}

	handle, err := open(pod)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer handle.Close()
	l, err := handle.LinkByName(w.IfName)
	if isNotFound(err) {
		return fmt.Errorf("%w: the pod has no interface %s", ErrBroken, w.IfName)
	}
	if err != nil {
		return fmt.Errorf("look for interface %s in the pod: %w", w.IfName, err)
	}
	return checkPod(handle, l, w)
}

// checkPod compares the pod's addresses and routes with those that it should have.
func checkPod(handle *netlink.Handle, l netlink.Link, w Wire) error {
	addrs, err := handle.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", w.IfName, err)
	}
	for _, want := range w.Addrs {
		net := ipNet(want)
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == net.String() }) {
			return fmt.Errorf("%w: %s has lost the address %s", ErrBroken, w.IfName, want)
		}
	}

	routes, err := handle.RouteList(l, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", w.IfName, err)
	}
	for _, want := range w.Routes {
		net := ipNet(want.To)
		ok := slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Dst != nil && r.Dst.String() == net.String() && (!want.Gateway.IsValid() || r.Gw.Equal(want.Gateway.AsSlice()))
		})
		if !ok && want.Table == 0 {
			return fmt.Errorf("%w: %s has lost the route to %s", ErrBroken, w.IfName, want.To)
		}
	}
	return nil
}
