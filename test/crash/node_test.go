//go:build crash

package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/failpoint"
	"crisp/test/testkit"
	"crisp/test/testkit/belongings"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

const (
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	// callTime bounds every call; none takes nearly as long.
	callTime = time.Minute
	// leaveTime bounds how long leftovers may take to be cleaned up.
	leaveTime = 10 * time.Second
	// programsEnv is the directory of programs with failpoints, on a machine that
	// has no compiler.
	programsEnv = "CRISP_CRASH_PROGRAMS"
)

func TestMain(m *testing.M) {
	if pluginMain() {
		return
	}
	os.Exit(testkit.Main(m))
}

// node is a daemon whose failpoints take orders.
type node struct {
	*lab.Lab
	// orders is the directory in which package pod looks for orders.
	orders string
	// hooked is the directory in which hooks note for which containers they ran.
	hooked string
	// usual is what exists on the node without pods.
	usual []string
	// hasCRIU means that containers can be checkpointed.
	hasCRIU bool
	// beside is another node of the same test, nil for none.
	beside *node
}

func newNode(t *testing.T, change ...func(*lab.Options)) *node {
	t.Helper()
	testkit.Root(t)
	beInit(t)
	n := &node{orders: t.TempDir(), hooked: publicDir(t)}
	o := lab.Options{Crisp: build(t), Env: []string{failpoint.Env + "=" + n.orders}, Config: n.defineHooks(t)}
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	if criu, err := cache.CRIU(); err == nil {
		o.Config, n.hasCRIU = fmt.Sprintf("criu_path = %q\n%s", criu, o.Config), true
	}
	for _, c := range change {
		c(&o)
	}

	n.Lab = testkit.Daemon(t, o)
	call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}})

	// Include what daemon and network plugins open or make once.
	for range 2 {
		s := n.newScene(t)
		s.run()
		s.create()
		s.start()
		s.removeAll()
		n.usual = n.belongings(t)
		n.Kill()
		n.killKeeper(t)
		n.begin(t)
	}

	return n
}

// untraced disables a node's failpoints, since recording hits takes more and more
// time and memory.
func untraced(o *lab.Options) { o.Env = nil }

// build returns a daemon with failpoints, which it builds unless it is there.
func build(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(programsEnv); dir != "" {
		return filepath.Join(dir, "crisp")
	}

	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "crash", "-o", dir, "crisp/cmd/crisp", "crisp/cmd/crisp-keeper").CombinedOutput()
	if err != nil {
		t.Fatalf("build crisp: %v: %s", err, out)
	}
	return filepath.Join(dir, "crisp")
}

func (n *node) begin(t *testing.T) {
	t.Helper()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// killKeeper kills the keeper and returns its PID, 0 if there is none: an idle
// keeper exits.
func (n *node) killKeeper(t *testing.T) int {
	t.Helper()
	pid, err := n.Keeper()
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err == nil {
		err = unix.Kill(pid, unix.SIGKILL)
	}
	if err != nil {
		t.Fatalf("kill the keeper: %v", err)
	}
	return pid
}

// responds reports whether the daemon responds.
func (n *node) responds(t *testing.T) bool {
	t.Helper()
	_, err := try(t, n.Runtime.Version, &runtimeapi.VersionRequest{})
	return err == nil
}

// order makes the daemon do something at a failpoint.
type order struct {
	kind string // "kill", "fail" or "wait"
	at   point
}

// point is the nth hit of a named failpoint.
type point struct {
	n    int
	name string
}

func (p point) String() string {
	if p.n == 1 {
		return p.name
	}
	return fmt.Sprintf("%s (%d)", p.name, p.n)
}

// publicDir returns a directory that the root of a user namespace can enter and write
// to, which it cannot with those of the test, below one of the test's own user.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "crash-hooks-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// give gives orders and resets the recorded hits.
func (n *node) give(t *testing.T, orders ...order) {
	t.Helper()
	var text strings.Builder
	for _, o := range orders {
		fmt.Fprintf(&text, "%s %d %s\n", o.kind, o.at.n, o.at.name)
	}

	err := os.WriteFile(filepath.Join(n.orders, failpoint.Orders), []byte(text.String()), 0o600)
	if err == nil {
		err = os.WriteFile(filepath.Join(n.orders, failpoint.Trace), nil, 0o600)
	}
	if err == nil {
		err = os.RemoveAll(filepath.Join(n.orders, failpoint.Go))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// release unblocks a daemon that was ordered to wait.
func (n *node) release(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.orders, failpoint.Go), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// obeyed reports whether all orders were executed.
func (n *node) obeyed(t *testing.T) bool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.orders, failpoint.Orders))
	if err != nil {
		t.Fatal(err)
	}
	return len(data) == 0
}

// hits lists the failpoints that were hit since the last orders.
func (n *node) hits(t *testing.T) []point {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.orders, failpoint.Trace))
	if err != nil {
		t.Fatal(err)
	}
	var all []point
	times := map[string]int{}
	for line := range strings.Lines(string(data)) {
		name := strings.TrimSuffix(line, "\n")
		times[name]++
		all = append(all, point{times[name], name})
	}
	return all
}

// belongings lists everything on the node that a pod may own.
func (n *node) belongings(t *testing.T) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), pace.Scale(callTime))
	defer cancel()
	all, err := belongings.List(ctx, n.Lab)
	if err != nil {
		t.Fatal(err)
	}

	rules, err := exec.CommandContext(ctx, "iptables-save").Output()
	if err != nil {
		t.Fatalf("list packet filter rules: %v", err)
	}

	for line := range strings.Lines(string(rules)) {
		if strings.HasPrefix(line, "-A") {
			all = append(all, "rule "+strings.TrimSpace(line))
		}
	}

	// Without the table there are no host ports of the own network.
	if table, err := exec.CommandContext(ctx, "nft", "list", "table", "inet", "crisp-net").Output(); err == nil {
		for _, comment := range regexp.MustCompile(`comment "([^" ]+)"`).FindAllStringSubmatch(string(table), -1) {
			all = append(all, "element "+comment[1])
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}

	for _, l := range links {
		all = append(all, "link "+l.Name)
	}
	for _, p := range inventory.Descendants(os.Getpid()) {
		other := n.beside != nil && p.PID == n.beside.PID()
		if p.PID != n.PID() && !other && p.Name != "crisp-keeper" && !zombie(p.PID) { // these are reaped later
			all = append(all, "process "+p.String())
		}
	}

	for _, dir := range []string{"root/pods", "root/cni", "root/image/containers", "state"} {
		all = append(all, n.files(t, dir)...)
	}
	return append(all, n.imageFiles(t)...)
}

// imageFiles lists blobs, layers and everything else in the image directory, but
// not the content of layers.
func (n *node) imageFiles(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*", "blobs/*/*", "layers/*", "layers/*/*", "tmp/*"} {
		paths, err := filepath.Glob(filepath.Join(n.Dir, "root/image", pattern))
		if err != nil {
			t.Fatal(err)
		}

		for _, path := range paths {
			// There are one or two records, depending on what is synced.
			if name := filepath.Base(path); name != "images.json" && name != "images.recent.json" {
				all = append(all, "image file "+path)
			}
		}
	}

	return all
}

func zombie(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || hasState(string(status), "Z")
}

// files lists a directory recursively.
func (n *node) files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(filepath.Join(n.Dir, dir), func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		all = append(all, "file "+path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantNoMore fails the test if there is anything on the node that did not exist
// before, after leftovers had time to be cleaned up.
func (n *node) wantNoMore(t *testing.T, when string, before []string, but ...string) {
	t.Helper()
	for end := time.Now().Add(pace.Scale(leaveTime)); ; time.Sleep(10 * time.Millisecond) {
		left := slices.DeleteFunc(n.belongings(t), func(what string) bool {
			return slices.Contains(before, what) || slices.ContainsFunc(but, func(kind string) bool { return strings.HasPrefix(what, kind) })
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("leaked %s: %s", when, strings.Join(left, ", "))
			return
		}
	}
}

// call makes a call that must succeed.
func call[Q, A any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	t.Helper()
	reply, err := try(t, f, request)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// try makes a call. It can be used in clean-ups.
func try[Q, A any](t *testing.T, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	t.Helper()
	return within(context.WithoutCancel(t.Context()), f, request)
}

// within makes a call that ends with ctx.
func within[Q, A any](ctx context.Context, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, pace.Scale(callTime))
	defer cancel()
	return f(ctx, request)
}
