//go:build node

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sources are what the pods of volumes and userNamespace mount.
const sources = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: secrets}
stringData: {password: hunter2}
`

// everyVolume is a pod with every kind of volume that a node provides by
// itself. The first parameter is a directory, the second what to add to the
// pod.
const everyVolume = `
apiVersion: v1
kind: Pod
metadata: {name: pod, labels: {tier: gold}, annotations: {note: first}}
spec:
	terminationGracePeriodSeconds: 1
	%[2]s
	volumes:
	- {name: settings, configMap: {name: settings}}
	- {name: secrets, secret: {secretName: secrets, defaultMode: 0440}}
	- {name: empty, emptyDir: {}}
	- {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
	- {name: host, hostPath: {path: %[1]s, type: DirectoryOrCreate}}
	- {name: image, image: {reference: "AGNHOST"}}
	- name: about
		downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: annotations, fieldRef: {fieldPath: metadata.annotations}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}]}
	- name: all
		projected: {sources: [{configMap: {name: settings}}, {secret: {name: secrets}}, {serviceAccountToken: {path: token}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}
	containers:
	- name: main
		image: BUSYBOX
		command: [sleep, "1000"]
		resources: {limits: {cpu: 500m, memory: 64Mi}}
		env:
		- {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
		- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
		- {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
		volumeMounts:
		- {name: settings, mountPath: /settings}
		- {name: settings, mountPath: /etc/colour, subPath: colour}
		- {name: secrets, mountPath: /secrets, readOnly: true}
		- {name: empty, mountPath: /empty}
		- {name: empty, mountPath: /below, subPathExpr: "under/$(COLOUR)"}
		- {name: memory, mountPath: /memory}
		- {name: host, mountPath: /host}
		- {name: image, mountPath: /image}
		- {name: image, mountPath: /uploads, subPath: uploads}
		- {name: about, mountPath: /about}
		- {name: all, mountPath: /all}
`

func volumes(s *space) {
	s.apply(sources)
	dir := filepath.Join(s.Dir, "host-path")
	s.apply(fmt.Sprintf(everyVolume, dir, ""))
	s.waitReady("pod")
	s.lookIntoVolumes()

	if text, err := os.ReadFile(filepath.Join(dir, "written")); err != nil || string(text) != "hello\n" {
		s.Errorf("on the host: got %q, %v", text, err)
	}
	s.kubectl("patch", "configmap", "settings", "-p", `{"data":{"colour":"blue"}}`)
	s.kubectl("patch", "secret", "secrets", "-p", `{"stringData":{"password":"correct horse"}}`)
	s.kubectl("annotate", "pod", "pod", "--overwrite", "note=second")

	for file, want := range map[string]string{"/settings/colour": "blue", "/all/colour": "blue", "/secrets/password": "correct horse", "/about/annotations": "second"} {
		s.eventually("the update of "+file, s.holds(want, "exec", "pod", "--", "cat", file))
	}
	if got := s.kubectl("exec", "pod", "--", "cat", "/etc/colour"); got != "red" {
		s.Errorf("a subPath was updated to %q, which it never should", got)
	}
}

// lookIntoVolumes checks the pod of everyVolume.
func (s *space) lookIntoVolumes() {
	s.Helper()
	sh := func(script string) string {
		s.Helper()
		return s.kubectl("exec", "pod", "--", "sh", "-c", script)
	}

	s.expect("configMap", sh("cat /settings/colour /settings/shape /etc/colour"), "redroundred")
	s.expect("secret", sh("cat /secrets/password"), "hunter2")
	s.expect("a secret's mode", sh("stat -L -c %a /secrets/password"), "440")
	s.expect("emptyDir", sh("echo hello >/empty/file; cat /empty/file; ls -d /empty/under/red; echo low >/below/file; cat /empty/under/red/file"), "hello", "low")
	s.expect("emptyDir in memory", sh("echo hello >/memory/file; cat /memory/file; df -k /memory"), "hello", "1024")
	s.expect("hostPath", sh("echo hello >/host/written; cat /host/written"), "hello")
	s.expect("image", sh("ls /image; ls -d /image/agnhost; touch /image/x 2>&1 || true"), "agnhost", "Read-only file system")
	s.expect("downward API", sh("cat /about/labels /about/annotations /about/cpu"), `tier="gold"`, `note="first"`, "500")
	s.expect("projected", sh("cat /all/colour /all/password /all/name; cut -c 1-3 /all/token"), "redhunter2pod", "eyJ")
	s.expect("environment", sh("echo $COLOUR $LIMIT $POD_IP"), "red 67108864 "+s.get("pod/pod", "{.status.podIP}"))
}

// userNamespace is a pod whose root is an unprivileged user on the node.
func userNamespace(s *space) {
	s.apply(sources)
	dir := filepath.Join(s.Dir, "host-path-of-users")
	s.apply(fmt.Sprintf(everyVolume, dir, "hostUsers: false"))
	s.waitReady("pod")

	if m := strings.Fields(s.kubectl("exec", "pod", "--", "cat", "/proc/self/uid_map")); len(m) != 3 || m[0] != "0" || m[1] == "0" || m[2] != "65536" {
		s.Errorf("user map %q, want 0 to 65535 to be others on the node", m)
	}
	s.lookIntoVolumes()
	s.expect("the owners of the files", s.kubectl("exec", "pod", "--", "stat", "-c", "%u", "/empty", "/memory", "/settings", "/image/agnhost", "/host/written", "/bin/busybox"), "0\n0\n0\n0\n0\n0\n")

	info, err := os.Stat(filepath.Join(dir, "written"))
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("on the node, the file is of mode %v", info.Mode())
}

// pressure is the eviction of a pod for its own writes, which affects no other
// pod.
func pressure(s *space) {
	pod := `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
	terminationGracePeriodSeconds: 1
	volumes: [{name: empty, emptyDir: {%s}}]
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "dd if=/dev/zero of=%s/big bs=1M count=20; sleep 1000"]
		resources: {limits: {%s}}
		volumeMounts: [{name: empty, mountPath: /empty}]
`

	s.apply(fmt.Sprintf(pod, "in-volume", "sizeLimit: 5Mi", "/empty", ""))
	s.apply(fmt.Sprintf(pod, "in-layer", "", "/root", "ephemeral-storage: 5Mi"))
	s.apply(fmt.Sprintf(pod, "modest", "", "/root", "ephemeral-storage: 50Mi"))
	s.wait("jsonpath={.status.reason}=Evicted", "pod/in-volume", "pod/in-layer")
	s.expect("why", s.get("pod/in-volume", "{.status.message}"), `EmptyDir volume "empty" exceeds`)
	s.expect("why", s.get("pod/in-layer", "{.status.message}"), `ephemeral local storage usage exceeds`)

	if reason := s.get("pod/modest", "{.status.reason}"); reason != "" {
		s.Errorf("the pod within its limit: %s", reason)
	}
}
