//go:build node

package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// guarded is a registry that requires a password. It returns its address and a
// counter of its responses.
func (s *space) guarded(user, password string) (string, *atomic.Int32) {
	var answered atomic.Int32
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.node.Lab.Registry.Addr})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="crisp"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answered.Add(1)
		proxy.ServeHTTP(w, r)
	}))
	s.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), &answered
}

func pullSecrets(s *space) {
	addr, answered := s.guarded("crisp", "secret")
	s.kubectl("create", "secret", "docker-registry", "good", "--docker-server="+addr, "--docker-username=crisp", "--docker-password=secret")
	pod := `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
	%s
	terminationGracePeriodSeconds: 1
	containers: [{name: main, image: "%s/pause:3.9", imagePullPolicy: Always}]
`

	s.apply(fmt.Sprintf(pod, "without", "", addr))
	s.apply(fmt.Sprintf(pod, "with", "imagePullSecrets: [{name: good}]", addr))
	s.waitReady("with")
	s.eventually("a pull without a password is refused", s.holds("401", "describe", "pod", "without"))

	if n := answered.Load(); n == 0 {
		s.Error("the image came from elsewhere")
	}
}

// pullErrors are common mistakes, and the expected output of describe.
func pullErrors(s *space) {
	pods := []struct {
		name, image string
		want        []string
	}{
		{"no-tag", s.node.Lab.Registry.Addr + "/pause:no-such-tag", []string{"ErrImagePull", "ImagePullBackOff", "/pause:no-such-tag", "404 Not Found"}},
		{"no-host", "127.0.0.1:1/pause:3.9", []string{"RegistryUnavailable", "ImagePullBackOff", "127.0.0.1:1/pause:3.9", "connection refused"}},
		{"no-name", "Not/A Name", []string{"InvalidImageName"}},
		{"no-pull", "registry.k8s.io/never-pulled:1", []string{"ErrImageNeverPull"}},
	}

	for _, p := range pods {
		policy := "Always"
		if p.name == "no-pull" {
			policy = "Never"
		}

		s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "%s", imagePullPolicy: %s}]}
`, p.name, p.image, policy))
	}

	for _, p := range pods {
		for _, word := range p.want {
			s.eventually(p.name+" says "+word, s.holds(word, "describe", "pod", p.name))
		}
	}
}

// unused is an image that no pod of these tests has.
const unused = "registry.k8s.io/e2e-test-images/nginx:1.14-2"

// pull pulls an image over the CRI.
func (s *space) pull(image string) {
	s.Helper()
	if _, err := s.node.Lab.Images.PullImage(s.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		s.Fatal(err)
	}
}

// has reports whether the node has an image.
func (s *space) has(image string) bool {
	s.Helper()
	resp, err := s.node.Lab.Images.ImageStatus(s.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil {
		s.Fatal(err)
	}
	return resp.Image != nil
}

// collecting are settings with which kubelet garbage-collects images, since
// disk usage exceeds the threshold.
func collecting(t *testing.T) map[string]any {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &fs); err != nil {
		t.Fatal(err)
	}
	// Other writes and removals may be up to two percent of it.
	used := 100 - int(fs.Bavail*100/fs.Blocks)
	return map[string]any{"imageGCHighThresholdPercent": max(used-2, 1), "imageGCLowThresholdPercent": max(used-3, 0)}
}

// imageGarbage waits for kubelet to garbage-collect images, which it does five
// minutes after its start: those that existed all the time and that no pod
// uses, but not those that one uses as its root or as a volume.
func (w *world) imageGarbage(t *testing.T) {
	s := w.space(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
	terminationGracePeriodSeconds: 1
	volumes: [{name: image, image: {reference: "AGNHOST"}}]
	containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"], volumeMounts: [{name: image, mountPath: /image}]}]
`)

	s.waitReady("user")
	s.within(*patience+5*time.Minute, "an unused image is removed", func() error {
		if s.has(unused) {
			return errors.New("it is still there")
		}
		return nil
	})

	for _, image := range []string{busybox, agnhost} {
		if !s.has(image) {
			t.Errorf("%s was removed, which a pod uses", image)
		}
	}
	w.node.Config["imageGCHighThresholdPercent"], w.node.Config["imageGCLowThresholdPercent"] = 99, 98
}
