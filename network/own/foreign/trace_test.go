package foreign

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// docker is what Docker installs with iptables, shortened.
const docker = `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A FORWARD -p udp -m udp --dport 53 -m comment --comment "a comment" -j ACCEPT
%s
COMMIT
`

// firewalld is the shape of firewalld's table: jumps by maps, and a reject at the end.
const firewalld = `table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_FORWARD_ZONES
		reject with icmpx type admin-prohibited
	}
	chain filter_FORWARD_ZONES {
		%s
		iifname "eth0" goto filter_FWD_public
		goto filter_FWD_public
	}
	chain filter_FWD_trusted { accept; }
	chain filter_FWD_public { meta l4proto { icmp, ipv6-icmp } accept; }
}`

func packet() Packet {
	return Packet{
		What: "from pods", Hooks: []nftables.ChainHook{*nftables.ChainHookForward}, In: "veth1", Out: "eth0", InIndex: 5, OutIndex: 2,
		Source: netip.MustParseAddr("10.77.0.2"), Target: netip.MustParseAddr("192.0.2.2"), Protocol: unix.IPPROTO_TCP,
	}
}

// TestTrace walks rulesets as other programs make them.
func TestTrace(t *testing.T) {
	for name, test := range map[string]struct {
		rules  string
		change func(*Packet)
		// want is "TABLE CHAIN RULE CERTAIN", "" for none.
		want string
	}{
		"nothing":                  {rules: ""},
		"docker":                   {rules: fmt.Sprintf(docker, ""), want: "ip filter FORWARD 0 true"},
		"docker, accepted":         {rules: fmt.Sprintf(docker, "-A DOCKER-USER -s 10.77.0.0/24 -j ACCEPT")},
		"docker, other accepted":   {rules: fmt.Sprintf(docker, "-A DOCKER-USER -s 10.78.0.0/16 -j ACCEPT"), want: "ip filter FORWARD 0 true"},
		"docker, its own":          {rules: fmt.Sprintf(docker, ""), change: func(p *Packet) { p.In = "docker0" }},
		"docker, IPv6":             {rules: fmt.Sprintf(docker, ""), change: v6},
		"docker, DNS":              {rules: fmt.Sprintf(docker, ""), change: func(p *Packet) { p.Protocol, p.Port = unix.IPPROTO_UDP, 53 }},
		"docker, UDP":              {rules: fmt.Sprintf(docker, ""), change: func(p *Packet) { p.Protocol = unix.IPPROTO_UDP }, want: "ip filter FORWARD 0 false"},
		"reject by iptables":       {rules: "*filter\n-A FORWARD -i veth+ -j REJECT\nCOMMIT\n", want: "ip filter FORWARD 1 true"},
		"wildcard of another name": {rules: "*filter\n-A FORWARD -i eth+ -j REJECT\nCOMMIT\n"},
		"firewalld":                {rules: fmt.Sprintf(firewalld, ""), want: "inet firewalld filter_FORWARD 6 true"},
		"firewalld, IPv6":          {rules: fmt.Sprintf(firewalld, ""), change: v6, want: "inet firewalld filter_FORWARD 6 true"},
		"firewalld, host port":     {rules: fmt.Sprintf(firewalld, ""), change: func(p *Packet) { p.Translated = true }},
		"firewalld, source zone":   {rules: fmt.Sprintf(firewalld, "ip saddr 10.77.0.0/24 goto filter_FWD_trusted")},
		"firewalld, by a map":      {rules: fmt.Sprintf(firewalld, `iifname vmap { "eth0" : goto filter_FWD_public, "veth1" : goto filter_FWD_trusted }`)},

		"a set of networks": {
			rules: `table ip t { set bad { type ipv4_addr; flags interval; elements = { 10.0.0.0/9, 192.0.2.0/31 } }
				chain f { type filter hook forward priority 0; ip saddr 10.0.0.1 accept; ip saddr @bad counter drop; }; }`,
			want: "ip t f 2 true",
		},
		"outside the set": {
			rules: `table ip t { set bad { type ipv4_addr; flags interval; elements = { 10.0.0.0/10, 192.0.2.0/31 } }
				chain f { type filter hook forward priority 0; ip saddr @bad drop; }; }`,
		},
		"a concatenation": {
			rules: `table ip t { chain f { type filter hook forward priority 0; ip saddr . ip daddr { 10.77.0.2 . 192.0.2.2 } drop; }; }`,
			want:  "ip t f 1 true",
		},
		"a range":                      {rules: `table ip t { chain f { type filter hook forward priority 0; ip daddr 192.0.2.1-192.0.2.3 drop; }; }`, want: "ip t f 1 true"},
		"a port that is not known":     {rules: `table ip t { chain f { type filter hook forward priority 0; tcp dport 25 drop; }; }`, want: "ip t f 1 false"},
		"another port":                 {rules: `table ip t { chain f { type filter hook forward priority 0; tcp dport 25 drop; }; }`, change: func(p *Packet) { p.Port = 80 }},
		"accepted by one table":        {rules: `table ip a { chain f { type filter hook forward priority -5; accept; }; }; table ip t { chain f { type filter hook forward priority 0; drop; }; }`, want: "ip t f 1 true"},
		"a limit":                      {rules: `table ip t { chain f { type filter hook forward priority 0; limit rate 5/second accept; drop; }; }`, want: "ip t f 2 false"},
		"a chain that may accept":      {rules: `table ip t { chain s { tcp dport 443 accept; }; chain f { type filter hook forward priority 0; policy drop; jump s; }; }`, want: "ip t f 0 false"},
		"returned":                     {rules: `table ip t { chain s { return; drop; }; chain f { type filter hook forward priority 0; jump s; }; }`},
		"another hook":                 {rules: `table ip t { chain f { type filter hook input priority 0; policy drop; }; }`},
		"bits of an address":           {rules: `table ip t { chain f { type filter hook forward priority 0; ip saddr & 255.0.0.0 == 10.0.0.0 drop; }; }`, want: "ip t f 1 true"},
		"another protocol":             {rules: `table ip t { chain f { type filter hook forward priority 0; meta l4proto udp drop; }; }`},
		"reverse path, not evaluated":  {rules: `table ip t { chain f { type filter hook forward priority 0; fib saddr . iif oif missing drop; }; }`, want: "ip t f 1 false"},
		"bridge tables are not routed": {rules: `table bridge t { chain f { type filter hook forward priority 0; policy drop; }; }`},
		"the caller's own":             {rules: `table inet own { chain f { type filter hook forward priority 0; policy drop; }; }`},
	} {
		t.Run(name, func(t *testing.T) {
			p := packet()
			if test.change != nil {
				test.change(&p)
			}

			got, d := "", trace(t, test.rules, p)
			if d != nil {
				got = fmt.Sprint(d.Table, " ", d.Chain, " ", d.Rule, " ", d.Certain)
				t.Logf("%+v", *d)
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func v6(p *Packet) {
	p.Source, p.Target = netip.MustParseAddr("fd77::2"), netip.MustParseAddr("2001:db8::2")
}

// trace loads rules into a namespace and traces a packet.
func trace(t *testing.T, rules string, p Packet) *Drop {
	t.Helper()
	testkit.Root(t)
	host := netnstest.New(t)
	load(t, host, rules)
	r, err := Read(host, func(table string) bool { return table != "inet own" })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	drop := r.Trace(p)
	if len(r.Unread) > 0 {
		t.Errorf("not read: %q", r.Unread)
	}
	return drop
}

// load loads rules of nft or of iptables.
func load(t *testing.T, ns *os.File, rules string) {
	t.Helper()
	program := []string{"nft", "-f", "-"}
	if strings.HasPrefix(rules, "*") {
		program = []string{"iptables-nft-restore"}
	}
	if _, err := exec.LookPath(program[0]); err != nil {
		testkit.Skip(t, program[0], err.Error())
	}

	err := netns.Do(ns, func() error {
		cmd := exec.CommandContext(t.Context(), program[0], program[1:]...)
		cmd.Stdin = strings.NewReader(rules)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%v: %w: %s", program, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
