//go:build node

package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"crisp/test/node/cluster"
	"crisp/test/testkit/lab"
)

// Ports of the web pods and of the host ports that lead to them, and ports of the nodes
// themselves: the first of each for HTTP, the next for UDP.
const (
	webPort  = 8080
	hostPort = 18080
	nodePort = 18090
)

// mesh are servers in pods, and on the nodes, of each node. Those of UDP on nodes listen
// on the nodes' addresses: on any, they would answer from that next to the client.
const mesh = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
	selector: {matchLabels: {app: web}}
	template:
		metadata: {labels: {app: web}}
		spec:
			terminationGracePeriodSeconds: 1
			containers:
			- name: web
				image: AGNHOST
				args: [netexec]
				ports: [{containerPort: 8080, hostPort: 18080}, {containerPort: 8081, hostPort: 18081, protocol: UDP}]
				readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node}
spec:
	selector: {matchLabels: {app: node}}
	template:
		metadata: {labels: {app: node}}
		spec:
			hostNetwork: true
			dnsPolicy: ClusterFirstWithHostNet
			terminationGracePeriodSeconds: 1
			containers:
			- name: node
				image: AGNHOST
				args: [netexec, --http-port=18090, --udp-port=18091, --udp-listen-addresses=$(ADDRESSES)]
				env: [{name: ADDRESSES, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}]
				readinessProbe: {httpGet: {path: /healthz, port: 18090}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
	type: NodePort
	ipFamilyPolicy: RequireDualStack
	selector: {app: web}
	ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30081}, {name: udp, port: 81, targetPort: 8081, protocol: UDP}]
`

// spot is a pod, or a node as its pod in the node's network sees it.
type spot struct {
	name  string
	node  int
	addrs []netip.Addr // of IPv4 and IPv6
	pod   bool
	port  int // of its server
}

// spots are the pods of the mesh.
func (p *pair) spots(s *space) []spot {
	s.Helper()
	var all []spot
	for _, app := range []string{"web", "node"} {
		s.rolledOut("daemonset/" + app)
		var list struct {
			Items []struct {
				Metadata struct {
					Name              string
					DeletionTimestamp string
				}
				Spec   struct{ NodeName string }
				Status struct{ PodIPs []struct{ IP netip.Addr } }
			}
		}
		if err := json.Unmarshal([]byte(s.kubectl("get", "pods", "-l", "app="+app, "-o", "json")), &list); err != nil {
			s.Fatal(err)
		}

		for _, item := range list.Items {
			if item.Metadata.DeletionTimestamp != "" {
				continue
			}
			at := spot{name: item.Metadata.Name, pod: app == "web", port: webPort}
			if !at.pod {
				at.port = nodePort
			}
			if item.Spec.NodeName == p.nodes[1].Name {
				at.node = 1
			}
			for _, ip := range item.Status.PodIPs {
				at.addrs = append(at.addrs, ip.IP)
			}
			all = append(all, at)
		}
	}
	if len(all) != 4 || slices.ContainsFunc(all, func(s spot) bool { return len(s.addrs) != 2 }) {
		s.Fatalf("pods with two addresses each, on two nodes: %+v", all)
	}
	return all
}

// question is a command for the shell of a spot that prints a line, and what that has to
// be.
type question struct {
	what, command string
	right         func(string) bool
}

// client is a right answer of a server that says who asks: one of the addresses, or any
// if there is none.
func client(want ...netip.Addr) func(string) bool {
	return func(answer string) bool {
		// UDP's is wrapped in JSON.
		answer = strings.TrimSuffix(strings.TrimPrefix(answer, `{"responses":["`), `"]}`)
		seen, err := netip.ParseAddrPort(answer)
		return err == nil && (len(want) == 0 || slices.Contains(want, seen.Addr().Unmap()))
	}
}

// Sizes in bytes: of a text that needs many full segments, and of the longest datagram,
// with its request's command, that fits into one packet of IPv6.
const (
	longText    = 300_000
	longMessage = 1500 - 40 - 8 - len("echo ")
)

// questions are those from one spot to another, in each family.
func questions(from, to spot) []question {
	var all []question
	for family, addr := range to.addrs {
		var want []netip.Addr
		if from.node != to.node && to.pod {
			want = []netip.Addr{from.addrs[family]} // as Kubernetes asks of a network
		}

		ask := func(what string, port int, right func(string) bool) {
			at := netip.AddrPortFrom(addr, uint16(port))
			what = fmt.Sprintf("%s to %s, %s at %s", from.name, to.name, what, at)
			udp := fmt.Sprintf(`curl -g -s -m 5 "http://127.0.0.1:%d/dial?protocol=udp&tries=1&host=%s&port=%d&request=`, from.port, addr, port+1)
			all = append(all,
				question{what + " by TCP", fmt.Sprintf("curl -g -s -m 5 http://%s/clientip", at), right},
				question{what + " by UDP", udp + `clientip"`, right},
				question{what + " by TCP, long", fmt.Sprintf("(printf msg=; head -c %d /dev/zero | tr '\\0' x) | curl -g -s -m 5 --data-binary @- http://%s/echo | wc -c", longText, at),
					func(answer string) bool { return answer == fmt.Sprint(longText) }},
				question{what + " by UDP, long", udp + fmt.Sprintf(`echo%%20$(head -c %d /dev/zero | tr '\0' x)" | tr -dc x | wc -c`, longMessage),
					func(answer string) bool { return answer == fmt.Sprint(longMessage) }})
		}
		ask("its port", to.port, client(want...))
		if !to.pod {
			ask("its host port", hostPort, client())
		}
	}
	return all
}

// ask asks all questions of a spot at once, in one shell.
func (s *space) ask(from spot, all []question) {
	s.Helper()
	var script strings.Builder
	for _, q := range all {
		fmt.Fprintf(&script, "echo $( %s )\n", q.command)
	}
	out, err := s.try("exec", from.name, "--", "sh", "-c", script.String())
	answers := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if err != nil || len(answers) != len(all) {
		s.Errorf("%d answers to %d questions of %s: %v\n%s", len(answers), len(all), from.name, err, out)
		return
	}
	for i, q := range all {
		if !q.right(answers[i]) {
			s.Errorf("%s: got %q", q.what, answers[i])
		}
	}
}

// askAll tries each way from some spots to all, in both families and by both protocols.
func (p *pair) askAll(s *space, some, all []spot) {
	s.Helper()
	var asking sync.WaitGroup
	for _, from := range some {
		asking.Go(func() {
			var list []question
			for _, to := range all {
				list = append(list, questions(from, to)...)
			}
			s.ask(from, list)
		})
	}
	asking.Wait()
}

// talk tries each way between the spots, those to the services, and names.
func (p *pair) talk(s *space) []spot {
	s.Helper()
	spots := p.spots(s)
	p.askAll(s, spots, spots)

	for _, from := range spots {
		for _, ip := range strings.Fields(s.get("service/web", "{.spec.clusterIPs[*]}")) {
			s.bothAnswer(from.name+" to the service at "+ip, func() (string, error) {
				return s.try("exec", from.name, "--", "curl", "-g", "-s", "-m", "5", "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String()+"/hostname")
			})
			s.bothAnswer(from.name+" to the service by UDP at "+ip, func() (string, error) {
				out, err := s.try("exec", from.name, "--", "curl", "-g", "-s", "-m", "5", fmt.Sprintf("http://127.0.0.1:%d/dial?protocol=udp&tries=1&host=%s&port=81&request=hostname", from.port, ip))
				return strings.TrimSuffix(strings.TrimPrefix(out, `{"responses":["`), `"]}`), err
			})
		}
		name := "http://web." + s.name + ".svc.cluster.local/hostname"
		s.eventually(from.name+" finds the service by its name", s.holds("web-", "exec", from.name, "--", "curl", "-s", "-m", "5", name))
	}
	for _, n := range p.nodes {
		for _, ip := range n.IPs() {
			at := netip.AddrPortFrom(netip.MustParseAddr(ip), 30081).String()
			s.bothAnswer("NodePort at "+at, func() (string, error) { return fetch("http://" + at + "/hostname") })
		}
	}
	return spots
}

// try has pods and nodes talk, while a daemon restarts and pods are replaced. healthy
// looks at the network from outside.
func (p *pair) try(s *space, healthy func(*space)) {
	p.ready(s)
	s.Cleanup(func() { s.cleanUp("delete", "clusterrole,clusterrolebinding", "coredns") })
	s.apply(fmt.Sprintf(dnsServer, s.name, cluster.DNS))
	s.apply(mesh)
	s.rolledOut("deployment/dns")
	before := p.talk(s)
	p.inCIDRs(s, before)
	healthy(s)

	// Without its daemon, the node's pods are reached as before.
	second := p.nodes[1].Lab
	onSecond := func(at spot) bool { return at.node == 1 }
	there := before[slices.IndexFunc(before, func(at spot) bool { return onSecond(at) && !at.pod })]
	if err := second.Stop(); err != nil {
		s.Fatal(err)
	}
	p.askAll(s, slices.DeleteFunc(slices.Clone(before), onSecond), before)
	p.start(s, second, there)
	after := p.talk(s)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		s.Errorf("pods were %v, and after a restart of the daemon they are %v", before, after)
	}
	healthy(s)

	// Pods that are replaced while the daemons are killed.
	s.kubectl("delete", "pod", "-l", "app=web", "--wait=false")
	for range 3 {
		second.Kill()
		p.start(s, second, there)
	}
	s.eventually("the pods are replaced", func() error {
		for _, old := range before {
			if _, err := s.try("get", "pod", old.name, "-o", "name"); err == nil && old.pod {
				return fmt.Errorf("%s is there", old.name)
			}
		}
		return nil
	})
	p.inCIDRs(s, p.talk(s))
	healthy(s)
}

// start starts a daemon again, and waits until its kubelet, which retries after a while,
// has found it: until a command runs in a pod there.
func (p *pair) start(s *space, l *lab.Lab, there spot) {
	s.Helper()
	if err := l.Start(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.eventually("commands run again in "+there.name, s.holds("well", "exec", there.name, "--", "echo", "well"))
}

// inCIDRs checks that pods have addresses of their nodes' pod CIDRs, each its own, and
// that no more of them are leased than there are pods.
func (p *pair) inCIDRs(s *space, spots []spot) {
	s.Helper()
	seen := map[netip.Addr]string{}
	for _, at := range spots {
		if !at.pod {
			continue
		}
		for family, addr := range at.addrs {
			if cidr := netip.MustParsePrefix(p.cidrs[at.node][family]); !cidr.Contains(addr) {
				s.Errorf("%s has the address %s, and the node %s", at.name, addr, cidr)
			}
			if other, taken := seen[addr]; taken {
				s.Errorf("%s is the address of %s and %s", addr, other, at.name)
			}
			seen[addr] = at.name
		}
	}

	for _, n := range p.nodes {
		s.eventually("each pod on "+n.Name+" has leases of two addresses", func() error {
			ips, err := s.try("get", "pods", "--all-namespaces", "--field-selector=spec.nodeName="+n.Name, "-o", "jsonpath={.items[*].status.podIPs[*].ip}")
			ofNode := func(ip string) bool { return slices.Contains(n.IPs(), ip) }
			if leased, want := n.Lab.Leases(), slices.DeleteFunc(strings.Fields(ips), ofNode); err == nil && !sameSet(leased, want) {
				err = fmt.Errorf("leased are %v, and pods have %v", leased, want)
			}
			return err
		})
	}
}

// sameSet reports whether two lists have the same elements.
func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}
