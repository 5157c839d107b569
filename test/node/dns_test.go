//go:build node

package node

import (
	"fmt"

	"crisp/test/node/cluster"
)

// server is the cluster's DNS: CoreDNS, at the address that kubelet gives pods.
const dnsServer = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: %s}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns}
data:
	Corefile: |
		.:53 {
			ready
			errors
			kubernetes cluster.local {
				pods insecure
			}
		}
---
apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {clusterIP: %s, selector: {app: dns}, ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53, protocol: TCP}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: dns}
spec:
	replicas: 2
	selector: {matchLabels: {app: dns}}
	template:
		metadata: {labels: {app: dns}}
		spec:
			serviceAccountName: coredns
			dnsPolicy: Default
			terminationGracePeriodSeconds: 1
			volumes: [{name: config, configMap: {name: coredns}}]
			containers:
			- name: coredns
				image: registry.k8s.io/coredns/coredns:test
				args: [-conf, /etc/coredns/Corefile]
				readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
				securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {add: [NET_BIND_SERVICE], drop: [all]}}
				volumeMounts: [{name: config, mountPath: /etc/coredns}]
`

// dns finds services and pods by their names.
func dns(s *space) {
	s.Cleanup(func() { s.cleanUp("delete", "clusterrole,clusterrolebinding", "coredns") })
	s.apply(fmt.Sprintf(dnsServer, s.name, cluster.DNS))
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
	hostname: called
	subdomain: names
	terminationGracePeriodSeconds: 1
	containers: [{name: main, image: AGNHOST, args: [netexec]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: AGNHOST, args: [pause]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec: {hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, terminationGracePeriodSeconds: 1, containers: [{name: main, image: AGNHOST, args: [pause]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: own-way}
spec:
	dnsPolicy: None
	dnsConfig: {nameservers: [192.0.2.1], searches: [example.com], options: [{name: ndots, value: "2"}]}
	terminationGracePeriodSeconds: 1
	containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]
`)

	s.rolledOut("deployment/dns")
	s.waitReady("web", "client", "on-host", "own-way")
	for _, from := range []string{"client", "on-host"} {
		for _, name := range []string{"web", "web." + s.name, "web." + s.name + ".svc.cluster.local"} {
			s.eventually(from+" finds the service "+name, s.holds("called", "exec", from, "--", "curl", "-s", "-m", "5", "http://"+name+"/hostname"))
		}
		s.eventually(from+" finds the pod by its name", s.holds("called", "exec", from, "--", "curl", "-s", "-m", "5", "http://called.names:8080/hostname"))
	}

	if out, err := s.try("exec", "client", "--", "curl", "-s", "-m", "5", "http://nonesuch/"); err == nil {
		s.Errorf("a name that does not exist: got %q", out)
	}
	if got := s.kubectl("exec", "own-way", "--", "cat", "/etc/resolv.conf"); got != "search example.com\nnameserver 192.0.2.1\noptions ndots:2\n" {
		s.Errorf("a pod with its own name server has %q", got)
	}
}
