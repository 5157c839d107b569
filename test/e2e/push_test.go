package e2e

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestPush makes images of containers, and moves them to another node by a registry.
func TestPush(t *testing.T) {
	n := withCRIU(t, "")
	r := writable(t)
	n.run(t, "checkpoint", func(t *testing.T) { testPushCheckpoint(t, n, r) })
	n.run(t, "commit", func(t *testing.T) { testPushCommit(t, n, r) })
	n.run(t, "credentials", func(t *testing.T) { testPushCredentials(t, n, r) })
	n.run(t, "refusals", func(t *testing.T) { testPushRefusals(t, n, r) })
}

// storage is an empty registry that takes images.
type storage struct{ host, dir string }

func writable(t *testing.T) storage {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := cache.Tool("registry")
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	r, err := lab.StartRegistry(t.Context(), lab.RegistryOptions{Binary: binary, Storage: dir, Work: t.TempDir(), Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return storage{r.Addr, filepath.Join(dir, "docker/registry/v2")}
}

// files are those in the registry's directory that match a pattern.
func (s storage) files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(s.dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// wantNothing requires that no upload is left in the registry. Of one that is given up the
// registry forgets to remove what it had hashed.
func (s storage) wantNothing(t *testing.T) {
	t.Helper()
	if left := s.files(t, "repositories/*/_uploads/*/data"); len(left) > 0 {
		t.Errorf("uploads are left: %q", left)
	}
}

// names are the images of a node.
func (n *node) names(t *testing.T) string {
	t.Helper()
	return n.crisp(t, "images", "list", "-o", `go-template={{range .}}{{.tags}}{{end}}`)
}

// pulled pulls an image, which must have a name by digest.
func (n *node) pulled(t *testing.T, name, byDigest string, flags ...string) {
	t.Helper()
	n.crisp(t, append([]string{"pull", name}, flags...)...)
	got := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}}).GetImage().GetRepoDigests()
	if len(got) != 1 || got[0] != byDigest {
		t.Errorf("the pull has %q, the push %q", got, byDigest)
	}
}

// testPushCheckpoint restores a container on the node where it was saved, whose image was
// removed, and on another one.
func testPushCheckpoint(t *testing.T, n *node, r storage) {
	p := n.pod(t, podNamed("saved"))
	c := p.start(t, sh(counting), named("app"))
	eventually(t, "it counts", func() bool { return c.count(t) > 1 })
	name := r.host + "/saved:1"
	was := n.names(t)
	byDigest := strings.TrimSpace(n.crisp(t, "checkpoint", "saved/app", "--push", name))
	if !strings.HasPrefix(byDigest, r.host+"/saved@sha256:") {
		t.Fatalf("it printed %q", byDigest)
	}
	until := c.count(t)
	wantLines(t, n.crisp(t, "df"), `^images of checkpoints +\d.* 1 images, in both of the above$`)
	if out := n.crisp(t, "images", "push", name); out != byDigest+"\n" {
		t.Errorf("a second push printed %q", out)
	}
	r.wantNothing(t)
	n.crisp(t, "rmi", name)
	if is := n.names(t); is != was {
		t.Errorf("there are images %q, were %q", is, was)
	}

	key := strings.TrimSpace(n.crisp(t, "checkpoint", "--key", "--root", n.path("root")))
	other := &node{testkit.Daemon(t, lab.Options{Second: true, Config: fmt.Sprintf("criu_path = %q\nrestore_from = [\"this-node\", %q]\n", criuOf(t), key)})}
	other.pull(t, busybox)
	for _, n := range []*node{n, other} {
		n.pulled(t, name, byDigest)
		q := n.pod(t, podNamed("again"))
		d := q.start(t, named("again"), image(byDigest)) // with a log of its own
		eventually(t, "it goes on", func() bool { _, last := d.countFrom(t); return last > until })
		if was, is := c.status(t), d.status(t); is.ImageId != was.ImageId || is.ImageId == "" {
			t.Errorf("its image is %q, was %q", is.ImageId, was.ImageId)
		}
		q.remove(t)
		n.crisp(t, "rmi", name)
	}
	p.remove(t)
}

// testPushCommit pulls an image of a container's files that was pushed.
func testPushCommit(t *testing.T, n *node, r storage) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"))
	c.sh(t, "echo mine >/mine")
	name := r.host + "/state:1"
	byDigest := strings.TrimSpace(n.crisp(t, "commit", "--push", "web/app", name))
	p.remove(t)
	n.crisp(t, "rmi", name)
	n.pulled(t, name, byDigest)
	q := n.pod(t)
	if got := q.output(t, "cat /mine", image(name)); got != "mine\n" {
		t.Errorf("the image has %q", got)
	}
	q.remove(t)
	n.crisp(t, "rmi", name)
	r.wantNothing(t)
}

// guarded is a registry before another one, which demands the password "pass" of "user", or
// answers itself.
func guarded(t *testing.T, r storage, answer func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, pass, _ := req.BasicAuth(); user != "user" || pass != "pass" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if answer == nil || !answer(w, req) {
			proxy.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// login writes a file with credentials.
func login(t *testing.T, host, password string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "auth.json")
	text := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, base64.StdEncoding.EncodeToString([]byte("user:"+password)))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// testPushCredentials pushes to a registry that demands credentials, and pulls from it.
func testPushCredentials(t *testing.T, n *node, r storage) {
	host := guarded(t, r, nil)
	p := n.pod(t, podNamed("web"))
	p.start(t, named("app"))
	name := host + "/private:1"
	file := login(t, host, "pass")
	byDigest := strings.TrimSpace(n.crisp(t, "commit", "--push", "--auth-file", file, "web/app", name))
	n.crisp(t, "rmi", name)
	n.refused(t, 1, "401 Unauthorized", "pull", name)
	n.pulled(t, name, byDigest, "--auth-file", file)
	n.crisp(t, "rmi", name)
	if strings.Contains(n.Log(), "pass\"") || strings.Contains(n.Log(), base64.StdEncoding.EncodeToString([]byte("user:pass"))) {
		t.Error("the log has the password")
	}
}

// testPushRefusals requires that a container is not even frozen if the registry takes
// nothing, and that nothing is left on either side.
func testPushRefusals(t *testing.T, n *node, r storage) {
	p := n.pod(t, podNamed("web"))
	p.start(t, named("app"), sh(counting))
	was, committed := n.names(t), strings.Count(n.Log(), "Committed a container")
	denying := guarded(t, r, func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPost {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"you may only read"}]}`)
		return true
	})
	page := guarded(t, r, func(w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, "<html>It works!</html>")
		return true
	})
	away := guarded(t, r, func(w http.ResponseWriter, req *http.Request) bool {
		w.Header().Set("Location", "http://169.254.169.254/latest/meta-data")
		w.WriteHeader(http.StatusAccepted)
		return req.Method == http.MethodPost
	})

	for _, test := range []struct{ host, password, why string }{
		{denying, "", "401 Unauthorized"},
		{denying, "wrong", "401 Unauthorized"},
		{denying, "pass", "DENIED: you may only read"},
		{page, "pass", "unexpected HTTP status 200 OK"},
		{away, "pass", "169.254.169.254"},
		{"nothing.invalid", "", "nothing.invalid"},
		{"127.0.0.1:1", "", "connection refused"},
	} {
		var flags []string
		if test.password != "" {
			flags = []string{"--auth-file", login(t, test.host, test.password)}
		}
		for _, args := range [][]string{{"checkpoint", "web/app", "--push", test.host + "/x:1"}, {"commit", "--push", "web/app", test.host + "/x:1"}} {
			n.refused(t, 1, test.why, append(args, flags...)...)
		}
	}
	if strings.Count(n.Log(), "Committed a container") != committed {
		t.Error("the container was frozen in vain")
	}

	// One that fails later: the image stays on the node, and can be pushed again.
	failing := true
	full := guarded(t, r, func(w http.ResponseWriter, req *http.Request) bool {
		if !failing || req.Method != http.MethodPut {
			return false
		}
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return true
	})
	name, file := full+"/x:1", login(t, full, "pass")
	n.refused(t, 1, "crisp images push "+name+" sends it again", "commit", "--push", "--auth-file", file, "web/app", name)
	r.wantNothing(t)
	if len(r.files(t, "repositories/x/_manifests/tags/*")) > 0 {
		t.Error("the registry has the image")
	}
	failing = false
	n.crisp(t, "images", "push", "--auth-file", file, name)

	n.refused(t, 6, "there is no image", "images", "push", r.host+"/none:1")
	n.refused(t, 1, "has no credentials for", "images", "push", "--auth-file", login(t, "other.example", "pass"), name)
	n.refused(t, 1, "if any flags in the group", "checkpoint", "web/app", "--image", "a", "--push", "b")
	n.crisp(t, "rmi", name)
	if is := n.names(t); is != was {
		t.Errorf("there are images %q, were %q", is, was)
	}
	if left, err := filepath.Glob("/var/tmp/crisp-checkpoint-*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}
