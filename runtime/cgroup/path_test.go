package cgroup

import (
	"errors"
	"testing"
)

func TestPath(t *testing.T) {
	fs := &Node{driver: Cgroupfs, parent: "/crisp"}
	sd := &Node{driver: Systemd, parent: "crisp.slice"}
	for _, c := range []struct {
		n                  *Node
		parent, path, rel  string
		parentRel, refused string
	}{
		{n: fs, parent: "", path: "/crisp/web", rel: "/crisp/web", parentRel: "/crisp"},
		{n: fs, parent: "/kubepods/burstable/pod1", path: "/kubepods/burstable/pod1/web", rel: "/kubepods/burstable/pod1/web", parentRel: "/kubepods/burstable/pod1"},
		{n: fs, parent: "kubepods//pod1/", path: "/kubepods/pod1/web", rel: "/kubepods/pod1/web", parentRel: "/kubepods/pod1"},
		{n: fs, parent: "/", refused: "the root group"},
		{n: fs, parent: "/a/../../b", refused: "an escape"},
		{n: fs, parent: "/a:b", refused: "a colon"},
		{n: fs, parent: "/a\nb", refused: "a line end"},
		{n: fs, parent: "/kubepods.slice/kubepods-pod1.slice", refused: "a slice for cgroupfs"},
		{n: sd, parent: "", path: "crisp.slice:cri-containerd:web", rel: "/crisp.slice/cri-containerd-web.scope", parentRel: "/crisp.slice"},
		{n: sd, parent: "kubepods-pod1.slice", path: "kubepods-pod1.slice:cri-containerd:web", rel: "/kubepods.slice/kubepods-pod1.slice/cri-containerd-web.scope", parentRel: "/kubepods.slice/kubepods-pod1.slice"},
		{n: sd, parent: "/kubepods.slice/kubepods-pod1.slice", path: "kubepods-pod1.slice:cri-containerd:web", rel: "/kubepods.slice/kubepods-pod1.slice/cri-containerd-web.scope", parentRel: "/kubepods.slice/kubepods-pod1.slice"},
		{n: sd, parent: "/test.slice", path: "test.slice:cri-containerd:web", rel: "/test.slice/cri-containerd-web.scope", parentRel: "/test.slice"},
		{n: sd, parent: "/kubepods/pod1", refused: "a path for systemd"},
		{n: sd, parent: "a--b.slice", refused: "no slice's name"},
	} {
		path, err := c.n.Path(c.parent, "web")
		if c.refused != "" {
			if !errors.Is(err, ErrParent) {
				t.Errorf("%s: parent %q (%s): got %q, %v, want %v", c.n.driver, c.parent, c.refused, path, err, ErrParent)
			}
			continue
		}
		if err != nil || path != c.path {
			t.Errorf("%s: parent %q: got %q, %v, want %q", c.n.driver, c.parent, path, err, c.path)
			continue
		}

		at, err := c.n.locate(path)
		if err != nil || at.rel != c.rel || at.parentRel != c.parentRel || at.id != "web" {
			t.Errorf("%s: %q is at %+v, %v, want %q in %q", c.n.driver, path, at, err, c.rel, c.parentRel)
		}
	}

	if at, err := sd.locate("crisp.slice:crisp:web"); err != nil || at.rel != "/crisp.slice/crisp-web.scope" || at.prefix != "crisp" {
		t.Errorf("a scope of an older version is at %+v, %v", at, err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "a:b", "a\x00"} {
		if path, err := fs.Path("", id); err == nil {
			t.Errorf("id %q: got %q, want an error", id, path)
		}
	}
}

func TestResolve(t *testing.T) {
	fs := &Node{driver: Cgroupfs, parent: "/crisp"}
	sd := &Node{driver: Systemd, parent: "crisp.slice"}
	for _, c := range []struct {
		n         *Node
		path, rel string
	}{
		{fs, "/one", "/one"},
		{fs, "/one/two/", "/one/two"},
		{fs, "/one/../../two/three", "/two/three"},
		{fs, "one", "/crisp/one"},
		{fs, "one/two", "/crisp/one/two"},
		{fs, "../../one", "/crisp/one"},
		{fs, "./a:b", "/crisp/a:b"},
		{sd, "user.slice:docker:1234", "/user.slice/docker-1234.scope"},
		{sd, ":docker:1234", "/system.slice/docker-1234.scope"},
		{sd, "a-b.slice:runc:x", "/a.slice/a-b.slice/runc-x.scope"},
	} {
		path, err := c.n.Resolve(c.path)
		if err != nil {
			t.Errorf("%s: %q: %v", c.n.driver, c.path, err)
			continue
		}
		if at, err := c.n.locate(path); err != nil || at.rel != c.rel {
			t.Errorf("%s: %q is at %+v, %v, want %q", c.n.driver, c.path, at, err, c.rel)
		}
	}

	for _, path := range []string{"/", "..", ".", "/a/..", "/a\nb", "a\x00"} {
		if got, err := fs.Resolve(path); err == nil {
			t.Errorf("%q: got %q, want an error", path, got)
		}
	}
}

func TestLocateRefuses(t *testing.T) {
	fs := &Node{driver: Cgroupfs, parent: "/crisp"}
	sd := &Node{driver: Systemd, parent: "crisp.slice"}
	for path, n := range map[string]*Node{
		"": fs, "/": fs, "crisp/web": fs, "/crisp/../web": fs, "crisp.slice:crisp:web": fs,
		"/crisp/web": sd, "crisp.slice:crisp:": sd, "crisp.slice::web": sd, "crisp.slice:crisp:a.slice": sd, "crisp.slice:a/b:web": sd, "crisp:crisp:web": sd,
	} {
		if at, err := n.locate(path); err == nil {
			t.Errorf("%s: %q is at %+v, want an error", n.driver, path, at)
		}
	}
}
