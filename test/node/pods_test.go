//go:build node

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func initAndSidecars(s *space) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
	restartPolicy: Never
	terminationGracePeriodSeconds: 2
	volumes: [{name: shared, emptyDir: {}}]
	initContainers:
	- {name: first, image: BUSYBOX, command: [sh, -c, "echo first >>/shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
	- name: sidecar
		image: BUSYBOX
		restartPolicy: Always
		command: [sh, -c, "echo sidecar >>/shared/order; trap 'echo asked to end; exit' TERM; while :; do sleep 0.1; done"]
		startupProbe: {exec: {command: [grep, sidecar, /shared/order]}, periodSeconds: 1}
		volumeMounts: [{name: shared, mountPath: /shared}]
	- {name: second, image: BUSYBOX, command: [sh, -c, "echo second >>/shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
	containers:
	- {name: main, image: BUSYBOX, command: [sh, -c, "sleep 1; cat /shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
`)

	s.wait("jsonpath={.status.phase}=Succeeded", "pod/pod")
	if log := s.kubectl("logs", "pod", "-c", "main"); log != "first\nsidecar\nsecond\n" {
		s.Errorf("got the order %q", log)
	}

	if code := s.get("pod/pod", "{.status.initContainerStatuses[1].state.terminated.exitCode}"); code != "0" {
		s.Errorf("the sidecar ended with %q, want 0", code)
	}
	s.expect("the sidecar's log", s.kubectl("logs", "pod", "-c", "sidecar"), "asked to end")
}

func probes(s *space) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: dies}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "touch /tmp/well; sleep 5; rm /tmp/well; sleep 1000"]
		livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 2, initialDelaySeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: hangs}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- name: main
		image: BUSYBOX
		command: [sleep, "1000"]
		readinessProbe: {exec: {command: [sleep, "100"]}, periodSeconds: 1, timeoutSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: all-kinds}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- name: http
		image: AGNHOST
		args: [netexec]
		startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
		readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
		livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: grpc}
spec:
	terminationGracePeriodSeconds: 1
	containers: [{name: grpc, image: AGNHOST, args: [grpc-health-checking], readinessProbe: {grpc: {port: 5000}, periodSeconds: 1}}]
`)

	s.waitReady("all-kinds", "grpc")
	s.eventually("the unwell container is restarted", func() error {
		if n := s.get("pod/dies", "{.status.containerStatuses[0].restartCount}"); n == "0" || n == "" {
			return fmt.Errorf("restarted %q times", n)
		}
		return nil
	})

	// Events arrive with some delay.
	s.eventually("why it was restarted is an event", s.holds("Liveness probe failed: cat: can't open '/tmp/well'", "describe", "pod", "dies"))
	s.eventually("a probe that hangs is ended", s.holds("timed out", "describe", "pod", "hangs"))
	if ready := s.get("pod/hangs", "{.status.containerStatuses[0].ready}"); ready != "false" {
		s.Errorf("the pod whose probe hangs is ready: %s", ready)
	}
}

func hooks(s *space) {
	dir := filepath.Join(s.Dir, "hooks")
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
	terminationGracePeriodSeconds: 20
	volumes: [{name: out, hostPath: {path: %s, type: DirectoryOrCreate}}]
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "trap 'echo TERM >>/out/order; exit' TERM; while :; do sleep 0.1; done"]
		volumeMounts: [{name: out, mountPath: /out}]
		lifecycle:
			postStart: {exec: {command: [sh, -c, "echo postStart >>/out/order"]}}
			preStop: {exec: {command: [sh, -c, "sleep 1; echo preStop >>/out/order"]}}
---
apiVersion: v1
kind: Pod
metadata: {name: refused}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- name: main
		image: BUSYBOX
		command: [sleep, "1000"]
		lifecycle: {postStart: {exec: {command: [sh, -c, "echo the hook says no; exit 9"]}}}
`, dir))

	s.waitReady("hooked")
	s.kubectl("delete", "pod", "hooked")
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil || string(order) != "postStart\npreStop\nTERM\n" {
		s.Errorf("got order %q, %v", order, err)
	}

	// The container's reason soon becomes kubelet's back-off.
	s.eventually("the hook's failure shows", s.holds("FailedPostStartHook", "describe", "pod", "refused"))
}

// endings are containers that end in every possible way, and the expected
// output of describe for each.
func endings(s *space) {
	pods := []struct {
		name, container string
		want            []string
	}{
		{"completed", `command: [sh, -c, "echo -n fine >/dev/termination-log"]`, []string{"Reason: Completed", "Exit Code: 0", "Message: fine"}},
		{"error", `command: [sh, -c, "echo last words; exit 3"], terminationMessagePolicy: FallbackToLogsOnError`, []string{"Reason: Error", "Exit Code: 3", "Message: last words"}},
		{"oom", `command: [sh, -c, "tail /dev/zero"], resources: {limits: {memory: 20Mi}}`, []string{"Reason: OOMKilled", "Exit Code: 137"}},
		{"startless", `command: [/no/such/program]`, []string{"Reason: StartError", "Exit Code: 128", "/no/such/program", "no such file or directory"}},
		{"dirless", `command: [/etc]`, []string{"Reason: StartError", "permission denied"}},
	}

	for _, p := range pods {
		s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {restartPolicy: Never, containers: [{name: main, image: BUSYBOX, %s}]}
`, p.name, p.container))
	}

	for _, p := range pods {
		s.wait("jsonpath={.status.containerStatuses[0].state.terminated}", "pod/"+p.name)
		// The widths of columns do not matter.
		text := strings.Join(strings.Fields(s.kubectl("describe", "pod", p.name)), " ")
		s.expect("describe pod "+p.name, text, p.want...)
	}
}

func processNamespace(s *space) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
	shareProcessNamespace: true
	terminationGracePeriodSeconds: 1
	containers:
	- {name: a, image: BUSYBOX, command: [sleep, "1234"]}
	- {name: b, image: BUSYBOX, command: [sleep, "4321"]}
`)
	s.waitReady("pod")
	s.expect("processes that a sees", s.kubectl("exec", "pod", "-c", "a", "--", "ps"), "sleep 1234", "sleep 4321")
}

func hostNetwork(s *space) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec:
	hostNetwork: true
	terminationGracePeriodSeconds: 1
	containers: [{name: main, image: AGNHOST, args: [netexec, --http-port=8181, --udp-port=-1]}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
	terminationGracePeriodSeconds: 1
	containers: [{name: main, image: AGNHOST, args: [netexec], ports: [{containerPort: 8080, hostPort: 8282}]}]
`)

	s.waitReady("on-host", "mapped")
	if ip := s.get("pod/on-host", "{.status.podIP}"); ip != s.node.IP {
		s.Errorf("the pod on the host's network has address %s", ip)
	}

	for port, name := range map[string]string{"8181": "", "8282": "mapped"} {
		s.eventually("port "+port, func() error {
			page, err := fetch("http://" + s.node.IP + ":" + port + "/hostname")
			if err == nil && !strings.Contains(page, name) {
				err = fmt.Errorf("%q answers", page)
			}
			return err
		})
	}

	s.kubectl("delete", "pod", "mapped")
	if _, err := fetch("http://" + s.node.IP + ":8282/hostname"); err == nil {
		s.Error("the host port answers although its pod is gone")
	}
}

func runtimeClasses(s *space) {
	s.apply(`
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: known}
handler: other
overhead: {podFixed: {memory: 5Mi}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: unknown}
handler: nonesuch
---
apiVersion: v1
kind: Pod
metadata: {name: known}
spec: {runtimeClassName: known, terminationGracePeriodSeconds: 1, containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unknown}
spec: {runtimeClassName: unknown, terminationGracePeriodSeconds: 1, containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]}
`)

	s.Cleanup(func() { s.cleanUp("delete", "runtimeclass", "known", "unknown") })
	s.waitReady("known")
	s.eventually("the unknown handler is named", s.holds("nonesuch", "get", "events", "--field-selector=reason=FailedCreatePodSandBox"))
}

func quota(s *space) {
	s.apply(`
apiVersion: v1
kind: ResourceQuota
metadata: {name: small}
spec: {hard: {pods: "1", limits.memory: 100Mi}}
`)

	s.eventually("the quota counts", s.holds("1", "get", "resourcequota", "small", "-o", "jsonpath={.status.hard.pods}"))
	pod := `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"], resources: {limits: {memory: 60Mi}}}]}
`

	s.apply(fmt.Sprintf(pod, "fits"))
	s.waitReady("fits")
	ctx, cancel := s.context()
	defer cancel()

	_, err := s.Kubectl(ctx, strings.ReplaceAll(fmt.Sprintf(pod, "too-much"), "BUSYBOX", busybox), "-n", s.name, "apply", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "exceeded quota") {
		s.Errorf("a second pod: got %v, want it refused", err)
	}
}

func resize(s *space) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- name: main
		image: BUSYBOX
		command: [sleep, "1000"]
		resources: {requests: {cpu: 100m, memory: 50Mi}, limits: {cpu: 200m, memory: 100Mi}}
	- name: restarts
		image: BUSYBOX
		command: [sleep, "1000"]
		resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
		resources: {requests: {memory: 50Mi}, limits: {memory: 50Mi}}
`)

	s.waitReady("pod")
	change := func(cpu, memory string) {
		s.kubectl("patch", "pod", "pod", "--subresource=resize", "-p", fmt.Sprintf(`{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":%q,"memory":%q}}}]}}`, cpu, memory))
		s.eventually("resize to "+cpu+" and "+memory, func() error {
			got := s.get("pod/pod", `{range .status.containerStatuses[?(@.name=="main")]}{.resources.limits.cpu} {.resources.limits.memory}{end}`)
			if got != cpu+" "+memory {
				return fmt.Errorf("the status says %s", got)
			}
			return nil
		})
	}

	limits := func() string {
		return s.kubectl("exec", "pod", "-c", "main", "--", "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us")
	}
	change("400m", "200Mi")
	s.expect("the cgroup after growing", limits(), "209715200\n", "40000")
	change("150m", "60Mi")
	s.expect("the cgroup after shrinking", limits(), "62914560\n", "15000")
	s.kubectl("patch", "pod", "pod", "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"restarts","resources":{"requests":{"memory":"70Mi"},"limits":{"memory":"70Mi"}}}]}}`)
	s.eventually("the container that wants to is restarted", func() error {
		got := s.get("pod/pod", `{range .status.containerStatuses[*]}{.name} {.restartCount} {end}`)
		if got != "main 0 restarts 1 " {
			return fmt.Errorf("restarts: %s", got)
		}
		return nil
	})
}

// cleanUp runs kubectl at the end of a test.
func (s *space) cleanUp(args ...string) {
	ctx, cancel := contextAfter(s.T)
	defer cancel()
	if _, err := s.Kubectl(ctx, "", args...); err != nil {
		s.Error(err)
	}
}

func staticPod(s *space) {
	file := filepath.Join(s.node.Manifests(), "static.yaml")
	text := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: static, namespace: %s}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %s, command: [sleep, "1000"]}]}
`, s.name, busybox)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}

	name := "pod/static-" + s.node.Name
	s.eventually("its mirror is there", s.holds("Running", "get", name))
	uid := s.get(name, "{.metadata.uid}")
	s.kubectl("delete", name)
	s.eventually("its mirror is there again", func() error {
		now, err := s.try("get", name, "-o", "jsonpath={.metadata.uid}")
		if err == nil && now == uid {
			err = fmt.Errorf("it is still the old one")
		}
		return err
	})

	if err := os.Remove(file); err != nil {
		s.Fatal(err)
	}
	s.kubectl("wait", "--for=delete", name, "--timeout="+patience.String())
}
