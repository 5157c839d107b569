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

// reach restricts the addresses to which one host may redirect connections.
//
// The address of the host itself is given by its name or the configuration, and
// may be on this machine. Where it sends a client, by a redirect or to a token
// server, is its own choice: never to an address that is only meaningful on this
// machine or its link, such as a cloud's metadata service (SSRF). Addresses are
// checked after name resolution, right before the connect, so DNS rebinding gains
// nothing.
type reach struct {
	// base is the host:port of the host itself.
	base   string
	dialer net.Dialer

	// local and remote record that the host itself was reached on this machine
	// or elsewhere. A host on this machine may redirect to others there.
	local, remote atomic.Bool

	mu sync.Mutex
	// proxies are the host:port pairs of the administrator's proxies in use.
	proxies map[string]bool // guarded by mu
}

func newReach(base *url.URL, timeout time.Duration) *reach {
	return &reach{
		base:    hostPort(base),
		dialer:  net.Dialer{Timeout: timeout, KeepAlive: keepAlive},
		proxies: map[string]bool{},
	}
}

// proxy is [http.ProxyFromEnvironment], whose results it records.
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

	// A host that was remote does not suddenly move to this machine.
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

// check refuses a resolved host:port to which the host must not redirect.
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
		return fmt.Errorf("%w: refused to follow the registry to %s, an address of this machine or its link", ErrProtocol, a)
	}
	return nil
}

func broadcast() netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// embedded returns the IPv4 address in an IPv6 address with NAT64's well-known
// prefix (RFC 6052), or a itself.
func embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	if a.Is6() && netip.PrefixFrom(netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b}), 96).Contains(a) {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

// checkURL checks the host name in a URL, which is all that can be done if a proxy
// resolves it.
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

// hostPort returns the host:port that a transport dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
