package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
)

// signer is the key of a node, and the policy to trust nobody else.
func (n *node) signer(t *testing.T) (checkpoint.PublicKey, checkpoint.Policy) {
	t.Helper()
	key, err := checkpoint.OpenKey(n.path("root"))
	if err != nil {
		t.Fatal(err)
	}
	from, err := checkpoint.ParsePolicy([]string{checkpoint.ThisNode}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key.Public(), from
}

// readable checks that an archive is the node's, that its images are what its container
// may have, and that they are not accepted for a container with less rights.
func (n *node) readable(t *testing.T, file string) {
	t.Helper()
	signer, from := n.signer(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	terms := checkpoint.Terms{Bytes: 1 << 30, From: from}
	u, err := checkpoint.Unpack(t.Context(), bytes.NewReader(text), t.TempDir(), "a", terms)
	if err != nil {
		t.Fatal(err)
	}
	if u.Signer != signer {
		t.Errorf("the archive is signed by %q", u.Signer)
	}

	images, err := criu.Inspect(t.Context(), u.Images())
	if err != nil {
		t.Fatal(err)
	}
	if err := images.Check(allowed(t, u.Spec, nil)); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*specs.Spec){
		"no_new_privs": func(s *specs.Spec) {
			s.Process.NoNewPrivileges, s.Process.User.UID = true, 4321
			s.Process.Capabilities = nil
		},
		"capabilities": func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{} },
		"mask":         func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/proc/version") },
		"mount":        func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/more", Type: "bind"}) },
		"read-only":    func(s *specs.Spec) { s.Mounts[0].Options = append(s.Mounts[0].Options, "ro") },
		"namespace":    func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:0] },
		"memory": func(s *specs.Spec) {
			least := int64(4096)
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &least}
		},
		"oom_score_adj": func(s *specs.Spec) { score := 1000; s.Process.OOMScoreAdj, s.Process.Capabilities = &score, nil },
	} {
		want := criu.ErrForbidden
		if name == "mount" {
			want = criu.ErrDiffers
		}
		if err := images.Check(allowed(t, u.Spec, change)); !errors.Is(err, want) {
			t.Errorf("for a container with another %s: %v", name, err)
		}
	}

	if err := u.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	text[len(text)/2]++
	if _, err := checkpoint.Unpack(t.Context(), bytes.NewReader(text), t.TempDir(), "a", terms); err == nil {
		t.Error("a changed archive is accepted")
	}
}

// allowed is what a changed copy of a spec allows.
func allowed(t *testing.T, s *specs.Spec, change func(*specs.Spec)) criu.Allowed {
	t.Helper()
	text, err := json.Marshal(s)
	var next specs.Spec
	if err == nil {
		err = json.Unmarshal(text, &next)
	}
	if err != nil {
		t.Fatal(err)
	}

	if change != nil {
		change(&next)
	}
	a, err := criu.AllowedBy(&next, func(path string) (string, error) { return path, nil })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// readablePod checks that the checkpoint of a pod is the node's, with its archives.
func (n *node) readablePod(t *testing.T, path string, archives ...string) {
	t.Helper()
	signer, from := n.signer(t)
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p, err := checkpoint.OpenPod(dir, from)
	if err != nil {
		t.Fatal(err)
	}
	if p.Signer != signer {
		t.Errorf("the pod's checkpoint is signed by %q", p.Signer)
	}

	digests := map[string]bool{}
	for _, name := range archives {
		f, digest, err := p.Archive(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		u, err := checkpoint.Unpack(t.Context(), f, t.TempDir(), "a", checkpoint.Terms{Bytes: 1 << 30, From: from, Digest: digest})
		if err != nil {
			t.Errorf("%s: %v", filepath.Join(path, name), err)
			continue
		}
		digests[digest] = true
		if err := u.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(digests) != len(archives) {
		t.Errorf("%d digests of %d archives", len(digests), len(archives))
	}
}
