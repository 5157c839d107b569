package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// The link between this network namespace, with the first node in it, and that of the
// second.
const (
	nearLink, nearIP = "crispmv0", "192.168.79.1"
	farLink, farIP   = "crispmv1", "192.168.79.2"
)

// farNode starts a node in another network namespace, which gives the addresses that the
// first gives, too. It has no registry.
func farNode(t *testing.T, from *node, config string) *node {
	t.Helper()
	holder, err := lab.StartProcess(filepath.Join(t.TempDir(), "log"), nil, "unshare", "--net", "sleep", "infinity")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := holder.Stop(); err != nil {
			t.Error(err)
		}
	})

	below := []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", holder.PID())}
	eventually(t, "there is a network namespace", func() bool {
		own, err := os.Readlink("/proc/self/ns/net")
		other, oerr := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", holder.PID()))
		return errors.Join(err, oerr) == nil && own != other
	})
	for _, command := range []string{
		fmt.Sprintf("ip link add %s type veth peer name %s netns %d", nearLink, farLink, holder.PID()),
		fmt.Sprintf("ip addr add %s/24 dev %s", nearIP, nearLink),
		"ip link set " + nearLink + " up",
		"* ip link set lo up",
		fmt.Sprintf("* ip addr add %s/24 dev %s", farIP, farLink),
		"* ip link set " + farLink + " up",
		"* ip route add default via " + nearIP,
		"* sysctl -qw net.ipv4.ip_forward=1",
	} {
		args := strings.Fields(command)
		if args[0] == "*" {
			args = append(append([]string{}, below...), args[1:]...)
		}
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}

	to := &node{testkit.Daemon(t, lab.Options{Second: true, NoRegistry: true, Own: "routed", Routed: true, Below: below, Config: config})}
	lists, err := filepath.Glob(from.path("net.d", "*.conflist"))
	if err != nil || len(lists) != 1 {
		t.Fatalf("network configurations: %q, %v", lists, err)
	}
	text, err := os.ReadFile(lists[0])
	if err == nil {
		err = os.WriteFile(to.path("net.d", filepath.Base(lists[0])), []byte(strings.ReplaceAll(string(text), from.Dir, to.Dir)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// echo is a client that never stops: it sends numbers, and wants each back.
type echo struct {
	conn net.Conn
	// longest is the longest time between two answers.
	longest time.Duration
	count   int
	err     error
	ended   chan struct{}
}

func (e *echo) run() {
	defer close(e.ended)
	answers := bufio.NewScanner(e.conn)
	for last := time.Now(); ; {
		if _, e.err = fmt.Fprintln(e.conn, e.count); e.err != nil {
			return
		}
		if !answers.Scan() {
			e.err = errors.Join(errors.New("the connection has ended"), answers.Err())
			return
		}
		if got := answers.Text(); got != strconv.Itoa(e.count) {
			e.err = fmt.Errorf("the answer to %d is %q", e.count, got)
			return
		}

		e.longest, last = max(e.longest, time.Since(last)), time.Now()
		e.count++
		time.Sleep(time.Millisecond)
	}
}

// TestMigrateConnection moves a pod with its address, and a connection with it whose client
// never stops sending.
func TestMigrateConnection(t *testing.T) {
	program := criuOf(t)
	testkit.Leaks(t, nearLink, farLink)
	from := &node{testkit.Daemon(t, lab.Options{Own: "routed", Routed: true, Config: fmt.Sprintf("criu_path = %q\n", program)})}
	from.pull(t, busybox)
	key := strings.TrimSpace(from.crisp(t, "checkpoint", "--key", "--root", from.path("root")))
	to := farNode(t, from, fmt.Sprintf("criu_path = %q\nrestore_from = [%q]\n", program, key))
	n := nodes{from, to}

	from.pod(t, podNamed("first")) // so that the address is not the first one on both
	p := from.pod(t, podNamed("web"))
	c := p.start(t, sh("nc -ll -p 80 -e cat 2>/dev/null & "+counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 1 })
	ip := p.status(t).Network.Ip
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(nearIP)}, Timeout: pace.Scale(5 * time.Second)}
	conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(ip, "80"))
	if err != nil {
		t.Fatal(err)
	}
	client := &echo{conn: conn, ended: make(chan struct{})}
	go client.run()
	defer func() { conn.Close(); <-client.ended }()
	time.Sleep(300 * time.Millisecond)

	// The route is the cluster's to change: here, as soon as the pod is gone.
	moved := make(chan error, 1)
	go func() { moved <- n.routeFar(ip) }()
	d := n.migrate(t, c, "--keep-address")
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	if got := d.p.status(t).Network.Ip; got != ip {
		t.Errorf("its address is %s, and was %s", got, ip)
	}
	time.Sleep(time.Second)
	conn.Close()
	<-client.ended
	if client.err != nil && !errors.Is(client.err, net.ErrClosed) {
		t.Errorf("after %d answers: %v", client.count, client.err)
	}
	t.Logf("%d answers, the longest wait for one was %v", client.count, client.longest.Round(time.Millisecond))

	until := d.count(t)
	eventually(t, "it goes on", func() bool { return d.count(t) > until+2 })
	// It answers new clients, too.
	again, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(ip, "80"))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	d.p.remove(t)
}

// routeFar sends packets for an address to the second node, once the first has no route.
func (n nodes) routeFar(ip string) error {
	far, err := netlink.LinkByName(nearLink)
	if err != nil {
		return err
	}
	dst := netlink.NewIPNet(net.ParseIP(ip))
	for end := time.Now().Add(pace.Scale(20 * time.Second)); time.Now().Before(end); time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		if len(routes) > 0 {
			continue
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: dst, Gw: net.ParseIP(farIP)})
	}
	return errors.New("the first node still has a route")
}
