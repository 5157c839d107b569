package hostile

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pods"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	// attacker is the image of the program that attacks.
	attacker = "registry.k8s.io/e2e-test-images/resident:1"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// node is a daemon under attack. State of the node that no container may change
// is compared at the end of the test.
type node struct {
	*lab.Lab
	secret string // known only to the victim's pod
	canary string // a file that only the node has
}

func newNode(t *testing.T) *node {
	t.Helper()
	testkit.Root(t)
	testkit.Leaks(t)
	n := &node{Lab: testkit.Daemon(t, lab.Options{}), secret: fmt.Sprintf("of-another-pod-%d", time.Now().UnixNano())}
	n.canary = filepath.Join(n.Dir, "canary")
	if err := os.WriteFile(n.canary, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, image := range []string{busybox, nginx, attacker} {
		pods.Call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	}
	before := n.facts(t)
	t.Cleanup(func() {
		for what, now := range n.facts(t) {
			if was := before[what]; now != was {
				t.Errorf("%s of the node became %q, was %q", what, now, was)
			}
		}
	})

	return n
}

// facts are the state that no container may change.
func (n *node) facts(t *testing.T) map[string]string {
	t.Helper()
	facts := map[string]string{}
	read := func(path string) {
		data, err := os.ReadFile(path)
		facts[path] = fmt.Sprint(string(data), err)
	}

	for _, name := range []string{"core_pattern", "modprobe", "hostname", "sysrq", "panic", "randomize_va_space"} {
		read("/proc/sys/kernel/" + name)
	}
	read(n.canary)
	read("/etc/hostname")
	read("/proc/sys/fs/suid_dumpable")

	for _, root := range inventory.Hierarchies() {
		read(filepath.Join(root, "release_agent"))
	}
	for _, program := range []string{"../../bin/crisp", "../../bin/crisp-keeper"} {
		facts[program] = digest(t, program)
	}

	n.sockets(t, facts)
	return facts
}

// sockets adds the inode, mode and owner of each socket.
func (n *node) sockets(t *testing.T, facts map[string]string) {
	t.Helper()
	err := filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() != fs.ModeSocket {
			return nil // files that disappear are not sockets
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}

		facts["mode of "+path] = fmt.Sprintf("%o %d", st.Mode, st.Uid)
		if st.Mode&0o007 != 0 {
			t.Errorf("others may open the socket %s: mode %o", path, st.Mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func digest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// hidden is the form of the secret that an attacker gets, so that it does not
// find its own environment.
func (n *node) hidden() string {
	b := []byte(n.secret)
	for i := range b {
		b[i] ^= 1
	}
	return string(b)
}

// armed gives a container the environment that the attacker's program needs.
func (n *node) armed() pods.Change {
	return func(c *runtimeapi.ContainerConfig) {
		pods.Env("SECRET_XOR", n.hidden())(c)
		pods.Env("NODE", n.canary)(c)
	}
}

// capable gives a container a single capability, "" for none, or ALL; "usual"
// keeps the default ones.
func capable(capability string) pods.Change {
	return func(c *runtimeapi.ContainerConfig) {
		set := &runtimeapi.Capability{}
		switch capability {
		case "usual":
		case "":
			set.DropCapabilities = []string{"ALL"}
		case "ALL":
			set.AddCapabilities = []string{"ALL"}
		default:
			set.AddCapabilities, set.DropCapabilities = []string{capability}, []string{"ALL"}
		}
		c.Linux.SecurityContext.Capabilities = set
	}
}

// found are the lines of a log with this prefix, without it.
func found(log, word string) []string {
	var lines []string
	for line := range strings.Lines(log) {
		if rest, ok := strings.CutPrefix(line, word+" "); ok {
			lines = append(lines, strings.TrimSpace(rest))
		}
	}
	return lines
}
