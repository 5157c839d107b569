package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

const (
	mateIP   = "192.168.77.2"
	mateIPv6 = "fd00:192:168:77::2"
)

// Machine stands in for another machine: a network namespace, connected to this
// one by a veth pair.
type Machine struct {
	// IP is its address.
	IP string

	holder *lab.Process
	server *http.Server
	dir    string
}

// NewMachine creates a machine, for one more node. There can only be one.
func NewMachine(ctx context.Context, dir string) (_ *Machine, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &Machine{IP: mateIP, dir: dir}
	m.holder, err = lab.StartProcess(filepath.Join(dir, "machine.log"), nil, "unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity")
	if err != nil {
		return nil, fmt.Errorf("make a machine: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()

	up := func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "machine.log"))
		return err == nil && strings.HasPrefix(string(text), "up")
	}
	if err := m.holder.WaitUntil(ctx, pace.Scale(startTime), up); err != nil {
		return nil, fmt.Errorf("make a machine: %w", err)
	}

	return m, m.connect(ctx)
}

// Below is the command that starts a program on the machine.
func (m *Machine) Below() []string {
	return []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", m.holder.PID())}
}

// connect creates the veth pair.
func (m *Machine) connect(ctx context.Context) error {
	bridge, err := netlink.LinkByName(nodeLink)
	if err != nil {
		return fmt.Errorf("connect a machine: %w", err)
	}
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable0", MasterIndex: bridge.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsPid(m.holder.PID())}
	if err := errors.Join(netlink.LinkAdd(cable), netlink.LinkSetUp(cable)); err != nil {
		return fmt.Errorf("connect a machine: %w", err)
	}
	return errors.Join(
		m.run(ctx, "ip", "address", "add", m.IP+"/24", "dev", "eth0"),
		m.run(ctx, "ip", "address", "add", mateIPv6+"/64", "dev", "eth0", "nodad"),
		m.run(ctx, "ip", "link", "set", "eth0", "up"),
		m.run(ctx, "ip", "route", "add", "default", "via", ServerIP),
		m.run(ctx, "ip", "route", "add", "default", "via", serverIPv6))
}

func (m *Machine) run(ctx context.Context, command ...string) error {
	command = append(m.Below(), command...)
	if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
	}
	return nil
}

// Route adds routes between the pods of this machine and those of m, whose networks
// these are. IPv6 is for clusters that have it.
func (m *Machine) Route(ctx context.Context, ours, theirs []string) error {
	for _, network := range theirs {
		to, err := netip.ParsePrefix(network)
		if err != nil {
			return err
		}
		gateway, bits := net.ParseIP(m.IP), 32
		if to.Addr().Is6() {
			gateway, bits = net.ParseIP(mateIPv6), 128
		}
		dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), bits)}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gateway}); err != nil {
			return fmt.Errorf("add a route to %s: %w", network, err)
		}
	}

	for _, network := range ours {
		gateway := ServerIP
		if strings.Contains(network, ":") {
			gateway = serverIPv6
		}
		if err := m.run(ctx, "ip", "route", "add", network, "via", gateway); err != nil {
			return err
		}
	}
	return nil
}

// Share lets the machine's lab pull from the registry of another, which listens
// on this machine's loopback.
func (m *Machine) Share(registry *lab.Registry, theirs *lab.Lab) error {
	listener, err := net.Listen("tcp", ServerIP+":0")
	if err != nil {
		return fmt.Errorf("share a registry: %w", err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry.Addr})
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	m.server = &http.Server{Handler: proxy}
	go func() { _ = m.server.Serve(listener) }() // ends with Close
	return (&lab.Registry{Addr: listener.Addr().String()}).WriteHosts(filepath.Join(theirs.Dir, "certs.d"))
}

// Unshare undoes Share.
func (m *Machine) Unshare() error { return m.server.Close() }

// Close removes the machine, on which nothing may run any more.
func (m *Machine) Close() error { return errors.Join(m.holder.Stop(), os.RemoveAll(m.dir)) }
