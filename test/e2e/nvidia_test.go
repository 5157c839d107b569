package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// card is a directory of the node with what stands in for a GPU's driver.
type card struct {
	// hook is NVIDIA's program, dir the directory with device nodes and libraries.
	hook, dir string
	// program is one of the node's that needs libraries, loader its interpreter
	// and libs the libraries, by their names.
	program, loader string
	libs            map[string]string
}

// newCard makes the stand-ins: two device nodes, and the libraries of a program
// of the node in place of the driver's.
func newCard(t *testing.T) *card {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	tool, err := cache.Tool("nvidia-cdi-hook")
	if err != nil {
		testkit.Skip(t, "nvidia-cdi-hook", err.Error())
	}
	if _, err := os.Stat("/sbin/ldconfig"); err != nil {
		testkit.Skip(t, "ldconfig", err.Error())
	}

	c := &card{dir: openDir(t), program: "/bin/ls", libs: map[string]string{}}
	// A user namespace reaches it only here.
	c.hook = filepath.Join(c.dir, "nvidia-cdi-hook")
	data, err := os.ReadFile(tool)
	if err := errors.Join(err, os.WriteFile(c.hook, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	for minor, name := range map[uint32]string{5: "nvidia0", 7: "nvidiactl"} {
		if err := unix.Mknod(filepath.Join(c.dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}

	c.findLibraries(t)
	return c
}

// findLibraries asks the loader which libraries the program needs.
func (c *card) findLibraries(t *testing.T) {
	t.Helper()
	out, err := exec.Command("ldd", c.program).Output()
	if err != nil {
		testkit.Skip(t, "a program with libraries", err.Error())
	}
	for line := range strings.Lines(string(out)) {
		switch f := strings.Fields(line); {
		case len(f) >= 3 && f[1] == "=>":
			c.libs[f[0]] = f[2]
		case strings.HasPrefix(f[0], "/"):
			c.loader = f[0]
		}
	}
	if len(c.libs) < 2 || c.loader == "" {
		testkit.Skip(t, "a program with libraries", string(out))
	}
}

// spec is a specification as nvidia-ctk cdi generate writes it for one card.
func (c *card) spec() string {
	var s strings.Builder
	mount := func(from, to string) {
		fmt.Fprintf(&s, "  - {hostPath: %q, containerPath: %q, options: [ro, nosuid, nodev, rbind, rprivate]}\n", from, to)
	}
	hook := func(indent string, args ...string) {
		fmt.Fprintf(&s, "%[1]s- hookName: createContainer\n%[1]s  path: %[2]s\n%[1]s  args: [nvidia-cdi-hook, %[3]s]\n%[1]s  env: [NVIDIA_CTK_DEBUG=false]\n", indent, c.hook, strings.Join(args, ", "))
	}

	s.WriteString("---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env: [NVIDIA_VISIBLE_DEVICES=void]\n")
	fmt.Fprintf(&s, "  deviceNodes:\n  - {path: /dev/nvidiactl, hostPath: %s/nvidiactl}\n  mounts:\n", c.dir)
	mount(c.loader, c.loader)
	mount(c.program, "/usr/bin/nvidia-smi")
	for name, path := range c.libs {
		mount(path, "/usr/lib/nvidia/"+name)
	}

	s.WriteString("  hooks:\n")
	hook("  ", "create-symlinks", "--link", "libc.so.6::/usr/lib/nvidia-links/libcuda.so", "--link", "../nvidia0::/dev/dri/by-path/card")
	hook("  ", "enable-cuda-compat", "--host-driver-version=570.86.15")
	hook("  ", "update-ldcache", "--folder", "/usr/lib/nvidia")
	hook("  ", "disable-device-node-modification")
	s.WriteString("devices:\n- name: \"0\"\n  containerEdits:\n")
	fmt.Fprintf(&s, "    deviceNodes:\n    - {path: /dev/nvidia0, hostPath: %s/nvidia0}\n    hooks:\n", c.dir)
	hook("    ", "chmod", "--mode", "\"0751\"", "--path", "/dev/dri")
	return s.String()
}

// TestNvidia runs NVIDIA's own hooks, as a node with its toolkit does: the
// container sees the links, and finds libraries by the cache of its loader,
// which its image does not have.
func TestNvidia(t *testing.T) {
	h := newHookNode(t)
	card := newCard(t)
	write(t, filepath.Join(h.cdi, "nvidia.yaml"), card.spec())
	readonly := func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }
	writable := func(*runtimeapi.ContainerConfig) {}

	for name, kind := range podKinds() {
		for root, protect := range map[string]change{"writable root": writable, "read-only root": readonly} {
			h.run(t, name+", "+root, func(t *testing.T) {
				p := h.pod(t, kind)
				if got := p.output(t, "ls /etc/ld.so.cache /usr/lib/nvidia 2>&1 | wc -l", named("without")); got != "2\n" {
					t.Errorf("a container without the device sees %q", got)
				}
				c := p.start(t, device("nvidia.com/gpu=0"), protect)
				card.check(t, c)
			})
		}
	}
}

// check checks what a container with the card sees.
func (c *card) check(t *testing.T, ctr *container) {
	t.Helper()
	if got := ctr.sh(t, "readlink /usr/lib/nvidia-links/libcuda.so; readlink /dev/dri/by-path/card; echo $NVIDIA_VISIBLE_DEVICES"); got != "libc.so.6\n../nvidia0\nvoid" {
		t.Errorf("links and environment: %q", got)
	}
	if got := ctr.sh(t, "stat -c %a /dev/dri; stat -c '%t:%T %u:%g' /dev/nvidia0; head -c 3 /dev/nvidia0 | wc -c"); got != "751\n1:5 0:0\n3" {
		t.Errorf("device: %q", got)
	}

	// The libraries are in no directory that a loader knows by itself.
	if got := ctr.sh(t, "/usr/bin/nvidia-smi /usr/lib/nvidia"); got != strings.Join(slices.Sorted(maps.Keys(c.libs)), "\n") {
		t.Errorf("the program with libraries prints %q", got)
	}
	if r := ctr.exec(t, "sh", "-c", "rm /etc/ld.so.cache && /usr/bin/nvidia-smi"); r.ExitCode == 0 {
		t.Error("the program does not need the loader's cache")
	}
}
