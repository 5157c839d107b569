package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// nmeter is a command of busybox that Debian leaves out. All that is asked of
// it is the time to the millisecond.
const nmeter = "#!/bin/sh\necho | ts %H:%M:%.S | cut -c 1-12\n"

// kubernetes makes the images that Kubernetes' own tests and package
// test/node pull. Agnhost, the program that most of them are about, is built
// with the other programs of Kubernetes; without them there are no such images.
type kubernetes struct{ agnhost string }

func findKubernetes(cache string) kubernetes {
	return kubernetes{filepath.Join(cache, "kubernetes", "agnhost")}
}

// stamp tells one build of agnhost from another.
func (k kubernetes) stamp() (string, error) {
	f, err := os.Open(k.agnhost)
	if errors.Is(err, os.ErrNotExist) {
		return "no agnhost", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", k.agnhost, err)
	}
	return "agnhost " + hex.EncodeToString(sum.Sum(nil)), nil
}

// recipes lists the images; base is the layer with a shell.
func (k kubernetes) recipes(ctx context.Context, c *contents, base *part, web v1.Config) ([]recipe, error) {
	if _, err := os.Stat(k.agnhost); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err := c.packages.add(ctx, "bash", "curl", "netcat-openbsd"); err != nil {
		return nil, err
	}
	agnhost := newPart(func() (tree, error) { return k.layer(ctx, c) })
	clock := newPart(func() (tree, error) {
		t := tree{}
		t.file("/bin/nmeter", 0o755, []byte(nmeter))
		return t, nil
	})
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	run := v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: path}
	shell := v1.Config{Cmd: []string{"sh"}, Env: path}
	return []recipe{
		{[]string{e2e + "agnhost:2.55"}, []*part{base, agnhost, marker("2.55")}, run, dockerList},
		{[]string{e2e + "agnhost:2.63.0"}, []*part{base, agnhost}, run, dockerList},
		{[]string{e2e + "busybox:1.37.0-1"}, []*part{base, clock}, shell, ociIndex},
		{[]string{e2e + "ipc-utils:1.4"}, []*part{base, marker("ipc-utils")}, shell, ociIndex},
		{[]string{e2e + "nonroot:1.5"}, []*part{base}, v1.Config{Cmd: []string{"id"}, Env: path, User: "1234"}, ociIndex},
		{[]string{e2e + "nginx:1.15-4"}, []*part{base, newPart(func() (tree, error) { return c.nginx(80) }), marker("1.15")}, web, dockerList},
		{[]string{e2e + "nginx:1.27-0"}, []*part{base, newPart(func() (tree, error) { return c.nginx(80) }), marker("1.27")}, web, dockerList},
		{[]string{e2e + "nonewprivs:1.4"}, []*part{newPart(c.nonewprivs), marker("1.4")}, v1.Config{Entrypoint: []string{"/nonewprivs"}}, dockerList},
		{[]string{"pause:3.10.2"}, []*part{newPart(c.pause), marker("3.10.2")}, v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}, dockerList},
	}, nil
}

// layer is agnhost with what its image has besides.
func (k kubernetes) layer(ctx context.Context, c *contents) (tree, error) {
	t := tree{}
	t.text("/etc/passwd", passwd+"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n")
	t.text("/etc/group", group+"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")
	t.dir("/uploads", 0o755)
	t.file("/bin/nmeter", 0o755, []byte(nmeter))
	t.symlink("/agnhost-2", "agnhost")
	if err := t.copy("/agnhost", 0o755, k.agnhost); err != nil {
		return nil, err
	}
	// The key that it serves HTTPS with in tests comes with its sources.
	list := exec.CommandContext(ctx, "go", "list", "-C", "hack/tools/kubernetes", "-f", "{{.Dir}}", "k8s.io/kubernetes/test/images/agnhost/porter")
	dir, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("find the sources of agnhost: %w", err)
	}
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		if err := t.copy("/"+name, 0o644, filepath.Join(strings.TrimSpace(string(dir)), name)); err != nil {
			return nil, err
		}
	}
	for program, as := range map[string]string{"/bin/bash": "/bin/bash", "/usr/bin/curl": "/usr/bin/curl", "/bin/nc.openbsd": "/usr/bin/nc"} {
		if err := c.packages.install(t, program, as); err != nil {
			return nil, err
		}
	}
	return t, nil
}
