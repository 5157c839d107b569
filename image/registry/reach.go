package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const keepAlive = 30 * time.Second

// reach decides where the connections of one host may lead.
//
// The host itself is where its name or configuration says, which may be this
// machine. What it sends a client to, by a redirect or as a token server, is
// its own choice: never an address that only has a meaning on this machine or
// its link, such as the metadata service of a cloud. Addresses are looked at
// once they are resolved, right before they are connected to, so a name that
// resolves to something else a moment later gains nothing.
type reach struct {
	// base is the host:port of the host itself.
	base   string
	dialer net.Dialer

	// local and remote note that the host itself was reached on this machine
	// and elsewhere. One on this machine may name others there.
	local, remote atomic.Bool

	mu sync.Mutex
	// proxies are the host:port of the administrator's proxies in use.
	proxies map[string]bool // guarded by mu
}

func newReach(base *url.URL, timeout time.Duration) *reach {
	return &reach{
		base:    hostPort(base),
		dialer:  net.Dialer{Timeout: timeout, KeepAlive: keepAlive},
		proxies: map[string]bool{},
	}
}

// proxy is [http.ProxyFromEnvironment], noting what it says.
func (r *reach) proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if u != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.proxies[hostPort(u)] = true
	}
	return u, err
}

func (r *reach) isProxy(addr string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proxies[addr]
}

// dial connects to addr, a host:port.
func (r *reach) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := r.dialer
	switch {
	case r.isProxy(addr):
		return d.DialContext(ctx, network, addr)
	case addr != r.base:
		d.Control = func(_, resolved string, _ syscall.RawConn) error { return r.check(resolved) }
		return d.DialContext(ctx, network, addr)
	}

	// A host that was elsewhere a moment ago has not moved to this machine.
	d.Control = func(_, resolved string, _ syscall.RawConn) error {
		if r.remote.Load() {
			return r.check(resolved)
		}
		return nil
	}

	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}

	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && !tcp.AddrPort().Addr().Unmap().IsLoopback() {
		r.remote.Store(true)
	} else {
		r.local.Store(true)
	}

	return conn, nil
}

// check refuses a resolved host:port that the host may not send anybody to.
func (r *reach) check(resolved string) error {
	ap, err := netip.ParseAddrPort(resolved)
	if err != nil {
		return fmt.Errorf("%w: connection to %q, which is not an IP address", ErrProtocol, resolved)
	}
	return r.checkAddr(ap.Addr())
}

func (r *reach) checkAddr(a netip.Addr) error {
	a = embedded(a.WithZone("").Unmap())
	switch {
	case a.IsLoopback() && r.local.Load() && !r.remote.Load():
		return nil
	case a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsUnspecified(), a.IsMulticast(), a == broadcast():
		return fmt.Errorf("%w: the registry leads to %s, an address of this machine or its link: it is not followed", ErrProtocol, a)
	}
	return nil
}

func broadcast() netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// embedded is the IPv4 address that a translated IPv6 address (RFC 6052, its
// well-known prefix) stands for, or a itself.
func embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	if a.Is6() && netip.PrefixFrom(netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b}), 96).Contains(a) {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

// checkURL refuses by what stands in a URL, which is all that can be done
// where a proxy resolves names.
func (r *reach) checkURL(u *url.URL) error {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return r.checkAddr(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return r.checkAddr(a)
	}
	return nil
}

// hostPort is what a transport dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
