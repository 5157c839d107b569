package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// The files that define users and groups. The users are those that critest uses
// by name.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
`
	// member is a user in a group defined by the image.
	memberPasswd = passwd + "default-user:x:1000:1000::/home/default-user:/bin/sh\n"
	memberGroup  = group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
)

const nginxConf = `daemon off;
user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen %d;
        root /usr/share/nginx/html;
    }
}
`

const page = "<!doctype html><title>crisp</title><p>It works.</p>\n"

// contents builds the layers of the images.
type contents struct {
	packages *packages
	programs string // directory with this tree's static programs
	arch     string // of all of them
}

// openContents stores packages and programs of an architecture in dir.
func openContents(dir, arch string) (*contents, error) {
	p, err := openPackages(filepath.Join(dir, "packages"), arch)
	return &contents{packages: p, programs: filepath.Join(dir, "programs"), arch: arch}, err
}

// compile adds one of this tree's programs to t.
func (c *contents) compile(ctx context.Context, t tree, as string, mode int64, name string) error {
	program := filepath.Join(c.programs, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "crisp/hack/images/programs/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+c.arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w: %s", name, err, out)
	}
	return t.copy(as, mode, program)
}

// base is a system small enough to read: busybox, and the few programs that
// tests call and busybox as Debian builds it lacks. Every command is a hard
// link of its own, as masking /bin/ls must not mask /bin/sh; and the shell
// runs commands by their path.
func (c *contents) base(ctx context.Context) (tree, error) {
	t := tree{}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/home", "/var", "/var/www", "/usr/bin", "/usr/sbin", "/mnt"} {
		t.dir(dir, 0o755)
	}

	t.dir("/root", 0o700)
	t.dir("/tmp", 0o1777)
	t.symlink("/var/run", "../run")
	t.text("/etc/passwd", passwd)
	t.text("/etc/group", group)
	t.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")

	for program, as := range map[string]string{"/bin/busybox": "/bin/busybox", "/usr/bin/pgrep": "/usr/bin/pgrep", "/usr/bin/ipcs": "/usr/bin/ipcs"} {
		if err := c.packages.install(t, program, as); err != nil {
			return nil, err
		}
	}

	busybox, err := c.packages.find("/bin/busybox")
	if err != nil {
		return nil, err
	}

	list := append(c.emulator(), busybox, "--list")
	out, err := exec.CommandContext(ctx, list[0], list[1:]...).Output()
	if err != nil {
		return nil, fmt.Errorf("list the commands of busybox: %w", err)
	}

	for name := range strings.FieldsSeq(string(out)) {
		t.link("/bin/"+name, "/bin/busybox")
	}
	t.symlink("/usr/bin/env", "../../bin/env")
	return t, nil
}

// emulator begins a command line that runs a program of the packages.
func (c *contents) emulator() []string {
	if c.arch == runtime.GOARCH {
		return nil
	}
	return []string{map[string]string{"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}[c.arch], "-L", c.packages.root}
}

// nginx is the web server on top of base.
func (c *contents) nginx(port int) (tree, error) {
	t := tree{}
	if err := c.packages.install(t, "/usr/sbin/nginx", "/usr/sbin/nginx"); err != nil {
		return nil, err
	}
	t.dir("/var/lib/nginx", 0o755)
	t.dir("/var/log/nginx", 0o755)
	t.text("/etc/nginx/nginx.conf", fmt.Sprintf(nginxConf, port))
	t.text("/usr/share/nginx/html/index.html", page)
	return t, nil
}

// httpd is busybox's web server, which logs its name.
func (c *contents) httpd() (tree, error) {
	t := tree{}
	t.text("/var/www/index.html", page)
	t.file("/bin/httpd-foreground", 0o755, []byte("#!/bin/sh\necho \"httpd serves /var/www\"\nexec httpd -f -p 80 -h /var/www\n"))
	return t, nil
}

func (c *contents) pause(ctx context.Context) (tree, error) {
	t := tree{}
	return t, c.compile(ctx, t, "/pause", 0o755, "pause")
}

func (c *contents) nmeter(ctx context.Context, t tree) error {
	return c.compile(ctx, t, "/bin/nmeter", 0o755, "nmeter")
}

func (c *contents) nonewprivs(ctx context.Context) (tree, error) {
	t := tree{}
	return t, c.compile(ctx, t, "/nonewprivs", 0o4755, "nonewprivs")
}

// resident attacks the node, as its command line selects.
func (c *contents) resident(ctx context.Context) (tree, error) {
	t := tree{}
	return t, c.compile(ctx, t, "/resident", 0o755, "resident")
}

// linkedEtc returns a layer whose /etc is a link.
func linkedEtc(target string) *part {
	return newPart(func() (tree, error) {
		t := tree{}
		t.symlink("/etc", target)
		return t, nil
	})
}

// marker returns a layer that no other image has.
func marker(name string) *part {
	return newPart(func() (tree, error) {
		t := tree{}
		t.text("/"+name, "")
		return t, nil
	})
}

func member() (tree, error) {
	t := tree{}
	t.text("/etc/passwd", memberPasswd)
	t.text("/etc/group", memberGroup)
	t.dir("/home/default-user", 0o755)
	return t, nil
}
