//go:build node

package node

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
)

// guarded is a registry that wants a password. It returns its address and
// counts the answers that it gave.
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

// pullErrors are those that people make, and what describe has to say.
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
