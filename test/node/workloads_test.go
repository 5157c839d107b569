//go:build node

package node

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"crisp/test/testkit/pace"
)

// fetch gets a page from the node.
func fetch(url string) (string, error) {
	client := http.Client{Timeout: pace.Scale(5 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	return string(page), err
}

func deployment(s *space) {
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
	replicas: 3
	selector: {matchLabels: {app: web}}
	template:
		metadata: {labels: {app: web}}
		spec:
			terminationGracePeriodSeconds: 1
			containers:
			- name: web
				image: AGNHOST
				args: [netexec]
				readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`)

	s.rolledOut("deployment/web")
	const newer = "registry.k8s.io/e2e-test-images/agnhost:2.55"
	s.kubectl("set", "image", "deployment/web", "web="+newer)
	s.rolledOut("deployment/web")

	if images := s.get("pods", "{.items[?(@.status.phase=='Running')].spec.containers[0].image}"); strings.Count(images, newer) < 3 {
		s.Errorf("got images %s, want three of %s", images, newer)
	}
	s.kubectl("rollout", "undo", "deployment/web")
	s.rolledOut("deployment/web")

	if restarts := s.get("pods", "{.items[*].status.containerStatuses[*].restartCount}"); strings.Trim(restarts, "0 ") != "" {
		s.Errorf("containers restarted: %s", restarts)
	}
}

func service(s *space) {
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
	replicas: 2
	selector: {matchLabels: {app: web}}
	template:
		metadata: {labels: {app: web}}
		spec:
			terminationGracePeriodSeconds: 1
			containers: [{name: web, image: AGNHOST, args: [serve-hostname], readinessProbe: {tcpSocket: {port: 9376}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 9376}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 9376, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]}
`)

	s.rolledOut("deployment/web")
	s.waitReady("client")
	ip := s.get("service/inside", "{.spec.clusterIP}")
	s.bothAnswer("ClusterIP from the node", func() (string, error) { return fetch("http://" + ip) })
	s.bothAnswer("NodePort", func() (string, error) { return fetch("http://" + s.node.IP + ":30080") })
	s.bothAnswer("ClusterIP from a pod", func() (string, error) {
		return s.try("exec", "client", "--", "timeout", "5", "wget", "-q", "-O", "-", "http://"+ip)
	})

	if out, err := s.try("exec", "client", "--", "timeout", "5", "wget", "-q", "-O", "-", "http://"+s.node.IP+":30080"); err != nil || !strings.HasPrefix(out, "web-") {
		s.Errorf("NodePort from a pod: got %q, %v", out, err)
	}
}

// bothAnswer fetches until both pods behind a service have answered.
func (s *space) bothAnswer(what string, fetch func() (string, error)) {
	s.Helper()
	names := map[string]bool{}
	s.eventually(what, func() error {
		page, err := fetch()
		if err != nil {
			return err
		}
		if names[strings.TrimSpace(page)] = true; len(names) < 2 {
			return fmt.Errorf("only %q answers", page)
		}
		return nil
	})

	for name := range names {
		if !strings.HasPrefix(name, "web-") {
			s.Errorf("%s: %q answered", what, name)
		}
	}
}

func daemonSet(s *space) {
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
	selector: {matchLabels: {app: agent}}
	template:
		metadata: {labels: {app: agent}}
		spec:
			terminationGracePeriodSeconds: 1
			containers:
			- name: agent
				image: BUSYBOX
				command: [sh, -c, "echo on $NODE; sleep 1000"]
				env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
`)

	s.rolledOut("daemonset/agent")
	s.expect("its log", s.kubectl("logs", "daemonset/agent"), "on "+s.node.Name)
}

func job(s *space) {
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: good}
spec:
	completions: 4
	parallelism: 2
	template: {spec: {restartPolicy: Never, containers: [{name: main, image: BUSYBOX, command: [sh, -c, "echo done"]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: bad}
spec:
	backoffLimit: 1
	template: {spec: {restartPolicy: Never, containers: [{name: main, image: BUSYBOX, command: [sh, -c, "exit 3"]}]}}
`)

	s.wait("condition=complete", "job/good")
	s.wait("condition=failed", "job/bad")
	if n := s.get("job/good", "{.status.succeeded}"); n != "4" {
		s.Errorf("%s pods succeeded, want 4", n)
	}
	s.expect("the log of a pod that ended", s.kubectl("logs", "job/good"), "done")
}

func cronJob(s *space) {
	s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: minutely}
spec:
	schedule: "* * * * *"
	jobTemplate: {spec: {template: {spec: {restartPolicy: OnFailure, containers: [{name: main, image: BUSYBOX, command: [date]}]}}}}
`)
	s.kubectl("create", "job", "--from=cronjob/minutely", "now")
	s.wait("condition=complete", "job/now")
	s.wait("jsonpath={.status.lastSuccessfulTime}", "cronjob/minutely")
}

func statefulSet(s *space) {
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: statefulset-0}
spec:
	storageClassName: statefulset
	capacity: {storage: 10Mi}
	accessModes: [ReadWriteOnce]
	hostPath: {path: %s, type: DirectoryOrCreate}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
	serviceName: db
	replicas: 1
	selector: {matchLabels: {app: db}}
	template:
		metadata: {labels: {app: db}}
		spec:
			terminationGracePeriodSeconds: 1
			securityContext: {fsGroup: 2000}
			containers:
			- name: db
				image: BUSYBOX
				command: [sh, -c, "hostname >>/data/starts; sleep 1000"]
				volumeMounts: [{name: data, mountPath: /data}]
	volumeClaimTemplates:
	- metadata: {name: data}
		spec: {storageClassName: statefulset, accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
`, filepath.Join(s.Dir, "volume-of-statefulset")))

	s.Cleanup(func() { s.cleanUp("delete", "persistentvolume", "statefulset-0", "--wait=false") })
	s.rolledOut("statefulset/db")

	s.kubectl("delete", "pod", "db-0")
	s.eventually("the pod is there again", s.holds("db-0\ndb-0\n", "exec", "db-0", "--", "cat", "/data/starts"))
}
