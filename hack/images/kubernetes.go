package main

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// searchPath is the environment of programs that look others up.
var searchPath = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// kubernetes builds the images that Kubernetes' own tests, package test/node
// and kubeadm pull. Their programs are those of "make kubernetes"; without them
// there are no such images.
type kubernetes struct{ dir string }

func findKubernetes(cache string) kubernetes { return kubernetes{filepath.Join(cache, "kubernetes")} }

func (k kubernetes) program(name string) string { return filepath.Join(k.dir, name) }

// stamp identifies a build of the programs by its inputs, as they are too big
// to be read each time. It is empty if one is missing.
func (k kubernetes) stamp() (string, error) {
	sum := sha256.New()
	for _, name := range []string{"agnhost", "coredns", "etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubeadm"} {
		info, err := buildinfo.ReadFile(k.program(name))
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("read how %s was built: %w", name, err)
		}
		fmt.Fprintf(sum, "%s\n%s\n", name, info)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// recipes lists the images; base is the layer with a shell.
func (k kubernetes) recipes(ctx context.Context, c *contents, base *part, web v1.Config) ([]recipe, error) {
	if stamp, err := k.stamp(); stamp == "" || err != nil {
		return nil, err
	}
	if err := c.packages.add(ctx, "bash", "curl", "hostname", "netcat-openbsd"); err != nil {
		return nil, err
	}

	agnhost := newPart(func() (tree, error) { return k.layer(ctx, c) })
	// Specs that print the environment call the shell without its path, and
	// Debian's busybox drops variables whose names it cannot use. Those that
	// call /bin/sh expect busybox's messages.
	shells := newPart(func() (tree, error) {
		t := tree{}
		return t, errors.Join(c.nmeter(ctx, t), c.packages.install(t, "/bin/bash", "/usr/local/bin/sh"))
	})

	hostname := newPart(func() (tree, error) {
		t := tree{}
		return t, c.packages.install(t, "/bin/hostname", "/usr/bin/hostname")
	})

	run := v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: searchPath}
	shell := v1.Config{Cmd: []string{"sh"}, Env: searchPath}
	all, err := k.controlPlane(ctx, c)
	if err != nil {
		return nil, err
	}
	return append(all, []recipe{
		{[]string{e2e + "agnhost:2.55"}, []*part{base, agnhost, marker("2.55")}, run, dockerList},
		{[]string{e2e + "agnhost:2.63.0"}, []*part{base, agnhost}, run, dockerList},
		{[]string{e2e + "glibc-dns-testing:2.0.0"}, []*part{base, hostname}, shell, dockerList},
		{[]string{e2e + "busybox:1.37.0-1"}, []*part{base, shells}, shell, ociIndex},
		{[]string{e2e + "ipc-utils:1.4"}, []*part{base, marker("ipc-utils")}, shell, ociIndex},
		{[]string{e2e + "nonroot:1.5"}, []*part{base}, v1.Config{Cmd: []string{"id"}, Env: searchPath, User: "1234"}, ociIndex},
		{[]string{e2e + "nginx:1.15-4"}, []*part{base, newPart(func() (tree, error) { return c.nginx(80) }), marker("1.15")}, web, dockerList},
		{[]string{e2e + "nginx:1.27-0"}, []*part{base, newPart(func() (tree, error) { return c.nginx(80) }), marker("1.27")}, web, dockerList},
		{[]string{e2e + "nonewprivs:1.4"}, []*part{newPart(func() (tree, error) { return c.nonewprivs(ctx) }), marker("1.4")}, v1.Config{Entrypoint: []string{"/nonewprivs"}}, dockerList},
		{[]string{"pause:3.10.2"}, []*part{newPart(func() (tree, error) { return c.pause(ctx) }), marker("3.10.2")}, v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}, dockerList},
	}...), nil
}

// layer is agnhost with the other files of its image.
func (k kubernetes) layer(ctx context.Context, c *contents) (tree, error) {
	t := tree{}
	t.text("/etc/passwd", passwd+"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n")
	t.text("/etc/group", group+"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")
	t.dir("/uploads", 0o755)
	t.symlink("/agnhost-2", "agnhost")
	if err := errors.Join(c.nmeter(ctx, t), t.copy("/agnhost", 0o755, k.program("agnhost"))); err != nil {
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
