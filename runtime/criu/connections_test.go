package criu

import (
	"net/netip"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"golang.org/x/sys/unix"
)

// TestKeepsConnections has TCP sockets of which all can go on, or not.
func TestKeepsConnections(t *testing.T) {
	v4 := func(a, b, c, d uint32) []uint32 { return []uint32{a | b<<8 | c<<16 | d<<24} }
	here, outside := v4(127, 0, 0, 1), v4(10, 0, 0, 1)
	mapped, v6 := []uint32{0, 0, 0xffff0000, 0x0100007f}, []uint32{0, 0, 0, 0x01000000}
	socket := func(state uint32, from []uint32, port uint32, to []uint32, peer uint32) *sk_inet.InetSkEntry {
		return &sk_inet.InetSkEntry{
			Family: u(unix.AF_INET), Type: u(unix.SOCK_STREAM), Proto: u(unix.IPPROTO_TCP), State: u(state),
			SrcAddr: from, SrcPort: u(port), DstAddr: to, DstPort: u(peer),
		}
	}
	listens := socket(tcpListening, v4(0, 0, 0, 0), 80, v4(0, 0, 0, 0), 0)
	client, server := socket(tcpEstablished, here, 1000, here, 80), socket(tcpEstablished, here, 80, here, 1000)

	for name, test := range map[string]struct {
		sockets []*sk_inet.InetSkEntry
		want    bool
	}{
		"none":              {nil, false},
		"none connected":    {[]*sk_inet.InetSkEntry{listens}, false},
		"both ends":         {[]*sk_inet.InetSkEntry{listens, client, server}, true},
		"both ends, v6":     {[]*sk_inet.InetSkEntry{socket(tcpEstablished, v6, 1, v6, 2), socket(tcpEstablished, v6, 2, v6, 1)}, true},
		"v4 in v6":          {[]*sk_inet.InetSkEntry{client, socket(tcpEstablished, mapped, 80, mapped, 1000)}, true},
		"one end":           {[]*sk_inet.InetSkEntry{client}, false},
		"one end outside":   {[]*sk_inet.InetSkEntry{client, server, socket(tcpEstablished, outside, 80, v4(10, 0, 0, 2), 5)}, false},
		"outside, twice":    {[]*sk_inet.InetSkEntry{socket(tcpEstablished, outside, 1, outside, 2), socket(tcpEstablished, outside, 2, outside, 1)}, false},
		"half closed":       {[]*sk_inet.InetSkEntry{client, socket(8, here, 80, here, 1000)}, false},
		"the same end":      {[]*sk_inet.InetSkEntry{client, server, client}, false},
		"another port":      {[]*sk_inet.InetSkEntry{client, socket(tcpEstablished, here, 80, here, 1001)}, false},
		"no such port":      {[]*sk_inet.InetSkEntry{socket(tcpEstablished, here, 1<<16, here, 1<<16)}, false},
		"no such address":   {[]*sk_inet.InetSkEntry{socket(tcpEstablished, nil, 1, nil, 1)}, false},
		"closed long since": {[]*sk_inet.InetSkEntry{client, server, socket(tcpClosed, outside, 80, v4(0, 0, 0, 0), 0)}, true},
	} {
		i := &Inventory{files: map[uint32]*fdinfo.FileEntry{}}
		for n, s := range test.sockets {
			i.files[uint32(n)] = &fdinfo.FileEntry{Isk: s}
		}
		if got := i.keepsConnections(nil); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	// The pod has kept its address.
	pod := netip.MustParseAddr("10.0.0.1")
	for name, test := range map[string]struct {
		sockets []*sk_inet.InetSkEntry
		want    bool
	}{
		"at the address":        {[]*sk_inet.InetSkEntry{socket(tcpEstablished, outside, 80, v4(10, 0, 0, 2), 5), client, server}, true},
		"at another":            {[]*sk_inet.InetSkEntry{socket(tcpEstablished, v4(10, 0, 0, 2), 80, outside, 5)}, false},
		"with one end inside":   {[]*sk_inet.InetSkEntry{socket(tcpEstablished, outside, 80, v4(10, 0, 0, 2), 5), client}, false},
		"half closed, as above": {[]*sk_inet.InetSkEntry{socket(8, outside, 80, v4(10, 0, 0, 2), 5)}, false},
	} {
		i := &Inventory{files: map[uint32]*fdinfo.FileEntry{}}
		for n, s := range test.sockets {
			i.files[uint32(n)] = &fdinfo.FileEntry{Isk: s}
		}
		if got := i.keepsConnections([]netip.Addr{pod}); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
