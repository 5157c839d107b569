package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// withCRIU starts a node whose CRIU is called through a script, if there is one.
func withCRIU(t *testing.T, script string) *node {
	t.Helper()
	program := criuOf(t)
	if script != "" {
		wrapped := filepath.Join(t.TempDir(), "criu")
		text := fmt.Sprintf("#!/bin/sh\n%s\nexec %s \"$@\"\n", script, program)
		if err := os.WriteFile(wrapped, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		program = wrapped
	}
	return newNode(t, lab.Options{Config: fmt.Sprintf("criu_path = %q\n", program)})
}

// checkpoint checkpoints a container and returns the files in the archive.
func (c *container) checkpoint(t *testing.T) map[string][]byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "checkpoint.tar")
	call(t, c.p.n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file, Timeout: int64(pace.Scale(callTime).Seconds())})
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the archive has mode %v", info.Mode())
	}
	c.p.n.readable(t, file)
	return untar(t, file)
}

func untar(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	files := map[string][]byte{}
	for name, e := range testkit.Entries(t, f) {
		files[name] = e.Data
	}
	return files
}

// criuOf returns the path of CRIU, without which the test is skipped.
func criuOf(t *testing.T) string {
	t.Helper()
	testkit.Root(t)
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	program, err := cache.CRIU()
	if errors.Is(err, lab.ErrNotMade) {
		testkit.Skip(t, "criu", "Debian's development suite could not be reached to fetch it")
	}
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// counting is a script that logs a number ten times a second, without a gap
// unless it is not the same process.
const counting = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done"

// count returns the last number that was logged, and checks that none is missing.
func (c *container) count(t *testing.T) int {
	t.Helper()
	lines := strings.Fields(strings.TrimSpace(c.logged(t)))
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
	return len(lines) - 1
}

// TestCheckpointctl reads an archive with the tool that users have for it.
func TestCheckpointctl(t *testing.T) {
	n := withCRIU(t, "")
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	tool, err := cache.Tool("checkpointctl")
	if err != nil {
		testkit.Skip(t, "checkpointctl", err.Error())
	}

	p := n.pod(t, podNamed("web"))
	c := p.start(t, sh("exec sleep 4321"), named("app"))
	file := filepath.Join(t.TempDir(), "a.tar")
	call(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file})
	for command, want := range map[string][]string{
		"show":          {"app", busybox, c.id[:12], "crisp"},
		"inspect --all": {"Pod name: web", "Kubernetes namespace: e2e", "sleep 4321", "Destination: /etc/hosts", "Pages written"},
	} {
		out, err := exec.CommandContext(t.Context(), tool, append(strings.Fields(command), file)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
		for _, text := range want {
			if !strings.Contains(string(out), text) {
				t.Errorf("%s does not say %q:\n%s", command, text, out)
			}
		}
	}
	p.remove(t)
}

// goesOn checks that a counting container is running, and the same process.
func (c *container) goesOn(t *testing.T) {
	t.Helper()
	before := c.count(t)
	eventually(t, "the container goes on", func() bool { return c.count(t) > before+2 })
	if st := c.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st.State)
	}
	if c.sh(t, "true"); t.Failed() {
		t.Error("a command cannot run in it")
	}
}

// ofEveryKind runs a test with a pod for each kind of container, which is what is changed
// of an ordinary one.
func (n *node) ofEveryKind(t *testing.T, do func(t *testing.T, p *pod, kind change)) {
	t.Helper()
	none := func(*runtimeapi.PodSandboxConfig) {}
	plain := func(c *runtimeapi.ContainerConfig) {}
	masked := func(c *runtimeapi.ContainerConfig) {
		sc := c.Linux.SecurityContext
		sc.ReadonlyRootfs = true
		sc.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"}
		sc.ReadonlyPaths = []string{"/proc/bus", "/proc/sys", "/proc/sysrq-trigger"}
		sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		sc.NoNewPrivs = true
	}

	for name, test := range map[string]struct {
		pod       func(*runtimeapi.PodSandboxConfig)
		container change
	}{
		"plain":                  {none, plain},
		"masked, read-only root": {none, masked},
		"volumes": {none, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/data"}, {HostPath: "/etc/passwd", ContainerPath: "/a file:1]", Readonly: true}}
		}},
		"terminal": {none, func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }},
		"stdin":    {none, func(c *runtimeapi.ContainerConfig) { c.Stdin = true }},
		"not root": {none, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}},
		"node's network": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}, plain},
		"user namespace":                         {userNamespace(300000), plain},
		"user namespace, masked, read-only root": {userNamespace(400000), masked},
		"user namespace, volumes": {userNamespace(500000), func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/data"}}
		}},
		"user namespace, terminal": {userNamespace(600000), func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }},
		"user namespace, stdin":    {userNamespace(700000), func(c *runtimeapi.ContainerConfig) { c.Stdin = true }},
		"privileged":               {func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }},
	} {
		n.run(t, name, func(t *testing.T) {
			if name == "not root" && !mayReadLimits(t) {
				testkit.Skip(t, "CAP_SYS_RESOURCE", "CRIU may not read the limits of another user's processes")
			}
			do(t, n.pod(t, test.pod), test.container)
		})
	}
}

// TestCheckpoint checkpoints containers of every kind; each goes on.
func TestCheckpoint(t *testing.T) {
	n := withCRIU(t, "")
	n.ofEveryKind(t, func(t *testing.T, p *pod, kind change) {
		c := p.start(t, sh(counting), kind)
		pid := c.pid(t)
		eventually(t, "it counts", func() bool { return c.count(t) > 1 })

		files := c.checkpoint(t)
		c.goesOn(t)
		if got := c.pid(t); got != pid {
			t.Errorf("process %d, was %d", got, pid)
		}
		for _, want := range []string{"checkpoint/inventory.img", "checkpoint/pages-1.img", "config.dump", "spec.dump", "status", "rootfs-diff.tar", "container.log", "dump.log", "stats-dump"} {
			if len(files[want]) == 0 {
				t.Errorf("the archive has no %s", want)
			}
		}
		c.checkpoint(t) // and again
		p.remove(t)
	})

	n.run(t, "connection", func(t *testing.T) { testCheckpointConnection(t, n) })
	n.run(t, "commands", func(t *testing.T) { testCheckpointCommand(t, n) })
	n.run(t, "files", func(t *testing.T) { testCheckpointFiles(t, n) })
	n.run(t, "removed image", func(t *testing.T) {
		const ref = "gcr.io/k8s-staging-cri-tools/test-image-1:latest"
		id := n.pull(t, ref)
		p := n.pod(t)
		c := p.start(t, image(id), sh(counting))
		call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		c.checkpoint(t)
		c.goesOn(t)
		p.remove(t)
	})
	n.run(t, "refusals", func(t *testing.T) { testCheckpointRefusals(t, n) })
	n.run(t, "pod", func(t *testing.T) { testCheckpointPod(t, n) })
}

// testCheckpointConnection keeps a TCP connection to a container over a checkpoint.
func testCheckpointConnection(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh("echo listens; exec nc -l -p 7000 -e cat"))
	eventually(t, "it listens", func() bool { return strings.Contains(c.logged(t), "listens") })
	var conn net.Conn
	eventually(t, "a connection", func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp", net.JoinHostPort(p.status(t).Network.Ip, "7000"))
		return err == nil
	})
	defer conn.Close()

	echo := func(text string) {
		t.Helper()
		if err := conn.SetDeadline(time.Now().Add(pace.Scale(callTime))); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.WriteString(conn, text); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
			t.Errorf("got %q, %v, want %q", got, err, text)
		}
	}
	echo("before")
	if files := c.checkpoint(t); len(files["checkpoint/files.img"]) == 0 {
		t.Error("the archive has no list of files")
	}
	echo("after")
	p.remove(t)
}

// testCheckpointCommand calls the command line.
func testCheckpointCommand(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, sh(counting), named("app"))
	dir := t.TempDir()
	file, pod := filepath.Join(dir, "app.tar"), filepath.Join(dir, "web")
	if out := n.crisp(t, "checkpoint", "web/app", file); out != file+"\n" {
		t.Errorf("printed %q", out)
	}
	n.crisp(t, "checkpoint", "--timeout", "30s", "e2e/web", pod)
	if untar(t, file)["config.dump"] == nil || untar(t, filepath.Join(pod, "container-0.tar"))["config.dump"] == nil {
		t.Error("an archive has no config.dump")
	}

	signer, _ := n.signer(t)
	if out := n.crisp(t, "checkpoint", "--key", "--root", n.path("root")); out != signer.String()+"\n" {
		t.Errorf("the key is %q, not %s", out, signer)
	}
	n.refused(t, 1, "not empty", "checkpoint", "web", pod)
	n.refused(t, 1, "no such", "checkpoint", "web/app", filepath.Join(dir, "none", "a.tar"))
	n.refused(t, 6, "nothing", "checkpoint", "nothing", file)
	c.goesOn(t)
	p.remove(t)
}

// mayReadLimits reports whether root may do so with another user's process.
func mayReadLimits(t *testing.T) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "1m")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }() // it only has to go
	var limit unix.Rlimit
	err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CPU, nil, &limit)
	if err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	return err == nil
}

// testCheckpointFiles compares the changes that an archive has with those that
// the container made.
func testCheckpointFiles(t *testing.T, n *node) {
	for _, mapped := range []bool{false, true} {
		p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
			if mapped {
				c.Metadata.Name, c.LogDirectory = "mapped", n.path("logs", "mapped")
				maps := []*runtimeapi.IDMapping{{HostId: 100000, ContainerId: 0, Length: 65536}}
				c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: maps, Gids: maps}
			}
		})
		c := p.start(t, sh(`mkdir -p /d/e; echo text >/d/e/file; ln /d/e/file /d/hard; ln -s /etc/shadow /d/link; chown 7:8 /d/e; chmod 4711 /d/e/file
mkfifo /d/pipe; rm /etc/group; rm -r /usr/bin; mkdir /usr/bin; echo new >/usr/bin/new; echo written; sleep 1000`))
		eventually(t, "it has written", func() bool { return strings.Contains(c.logged(t), "written") })

		files := c.checkpoint(t)
		var deleted []string
		if err := json.Unmarshal(files["deleted.files"], &deleted); err != nil {
			t.Error(err)
		}
		if !slices.Contains(deleted, "/etc/group") || !slices.Contains(deleted, "/usr/bin/pgrep") || slices.Contains(deleted, "/usr/bin/new") {
			t.Errorf("deleted: %q", deleted)
		}

		got := map[string]string{}
		for name, e := range testkit.Entries(t, bytes.NewReader(files["rootfs-diff.tar"])) {
			got[name] = fmt.Sprintf("%c %o %d:%d %s%q", e.Typeflag, e.Mode, e.Uid, e.Gid, e.Linkname, e.Data)
		}
		for name, want := range map[string]string{
			"d/e/": `5 755 7:8 ""`, "d/link": `2 777 0:0 /etc/shadow""`, "d/pipe": `6 644 0:0 ""`, "usr/bin/new": `0 644 0:0 "new\n"`,
		} {
			if got[name] != want {
				t.Errorf("user namespace %t: %s is %s, want %s", mapped, name, got[name], want)
			}
		}
		// Which of the two names comes first is the file system's choice.
		pair := []string{got["d/e/file"], got["d/hard"]}
		slices.Sort(pair)
		if !strings.HasPrefix(pair[0], "0 4711 0:0") || !strings.HasPrefix(pair[1], "1 ") {
			t.Errorf("a file with two names: %q", pair)
		}

		var config struct{ ID, Name, RootfsImageName, Runtime string }
		var spec struct{ Annotations map[string]string }
		if err := errors.Join(json.Unmarshal(files["config.dump"], &config), json.Unmarshal(files["spec.dump"], &spec)); err != nil {
			t.Error(err)
		}
		if config.ID != c.id || config.Name != "main" || config.RootfsImageName != busybox || config.Runtime != "crisp" {
			t.Errorf("config.dump: %+v", config)
		}
		if got := spec.Annotations["io.kubernetes.cri.sandbox-namespace"]; got != "e2e" {
			t.Errorf("namespace %q in spec.dump", got)
		}
		p.remove(t)
	}
}

// testCheckpointRefusals has requests that must fail and change nothing.
func testCheckpointRefusals(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh(counting))
	ended := p.start(t, func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Name, c.Command, c.LogPath = "ended", []string{"true"}, ""
	})
	ended.wait(t)
	shared := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Metadata.Name, c.Linux.SecurityContext.NamespaceOptions.Pid = "shared", runtimeapi.NamespaceMode_POD
	})
	joined := shared.start(t)
	sparse := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Metadata.Name, c.LogDirectory = "sparse", n.path("logs", "sparse")
	})
	holes := sparse.start(t, sh("truncate -s 100G /holes && echo made; sleep 1000"))
	eventually(t, "the file with holes", func() bool { return strings.Contains(holes.logged(t), "made") })

	dir := t.TempDir()
	for name, test := range map[string]struct {
		id, location string
		timeout      int64
		code         codes.Code
		says         string
	}{
		"no such container":     {"0123456789ab", dir + "/a.tar", 0, codes.NotFound, ""},
		"relative location":     {c.id, "a.tar", 0, codes.InvalidArgument, "absolute"},
		"no location":           {c.id, "", 0, codes.InvalidArgument, "absolute"},
		"location with ..":      {c.id, dir + "/../a.tar", 0, codes.InvalidArgument, "absolute"},
		"no such directory":     {c.id, dir + "/none/a.tar", 0, codes.InvalidArgument, "no such"},
		"location is directory": {c.id, dir, 0, codes.InvalidArgument, "regular"},
		"negative time-out":     {c.id, dir + "/a.tar", -1, codes.InvalidArgument, "time-out"},
		"exited":                {ended.id, dir + "/a.tar", 0, codes.FailedPrecondition, "exited"},
		"shared PID namespace":  {joined.id, dir + "/a.tar", 0, codes.FailedPrecondition, "PID namespace"},
		"holes":                 {holes.id, dir + "/a.tar", 0, codes.FailedPrecondition, "holes"},
	} {
		_, err := try(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: test.id, Location: test.location, Timeout: test.timeout})
		if wantCode(t, err, test.code, test.says); t.Failed() {
			t.Fatal(name)
		}
	}

	stop := c.pileUp(t, 1, []string{"sleep", "1234"})
	eventually(t, "the command runs", func() bool { return len(n.processes(t, "sleep\x001234")) > 0 })
	_, err := try(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: dir + "/a.tar"})
	wantCode(t, err, codes.FailedPrecondition, "commands (1)")
	stop()

	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if left, err := os.ReadDir(n.path("root", "checkpoints")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	c.goesOn(t)
	holes.sh(t, "true")
	p.remove(t)
	shared.remove(t)
	sparse.remove(t)
}

// testCheckpointPod checkpoints two containers that hand a number to each other:
// at no moment do they differ by more than one.
func testCheckpointPod(t *testing.T, n *node) {
	p := n.pod(t)
	named := func(name string) change {
		return func(c *runtimeapi.ContainerConfig) { c.Metadata.Name, c.LogPath = name, name+".log" }
	}
	a, b := p.start(t, sh(counting), named("a")), p.start(t, sh(counting), named("b"))
	request := func(change func(*runtimeapi.CheckpointPodRequest)) *runtimeapi.CheckpointPodRequest {
		r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: t.TempDir(), ContainerIds: []string{a.id, b.id}}
		change(r)
		return r
	}

	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*runtimeapi.CheckpointPodRequest)
		code   codes.Code
	}{
		"no such pod":        {func(r *runtimeapi.CheckpointPodRequest) { r.PodSandboxId = "0123456789ab" }, codes.NotFound},
		"no container":       {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = nil }, codes.InvalidArgument},
		"twice":              {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = a.id }, codes.InvalidArgument},
		"another's":          {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = "0123456789ab" }, codes.InvalidArgument},
		"unknown option":     {func(r *runtimeapi.CheckpointPodRequest) { r.Options = map[string]string{"fast": "yes"} }, codes.InvalidArgument},
		"relative directory": {func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = "out" }, codes.InvalidArgument},
		"no directory":       {func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath += "/none" }, codes.InvalidArgument},
		"full directory":     {func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = full }, codes.InvalidArgument},
	} {
		r := request(test.change)
		_, err := try(t, n.Runtime.CheckpointPod, r)
		if wantCode(t, err, test.code); t.Failed() {
			t.Fatal(name)
		}
	}
	_, err := n.Runtime.CheckpointPod(context.WithoutCancel(t.Context()), request(func(*runtimeapi.CheckpointPodRequest) {}))
	wantCode(t, err, codes.InvalidArgument, "deadline")
	if _, err := os.Stat(filepath.Join(full, "mine")); err != nil {
		t.Error(err)
	}

	r := request(func(*runtimeapi.CheckpointPodRequest) {})
	call(t, n.Runtime.CheckpointPod, r)
	a.goesOn(t)
	b.goesOn(t)
	var dump struct {
		Config     struct{ Metadata struct{ Name string } }
		Containers []struct{ Name, Archive string }
	}
	text, err := os.ReadFile(filepath.Join(r.OutputPath, "pod.dump"))
	if err == nil {
		err = json.Unmarshal(text, &dump)
	}
	if err != nil || len(dump.Containers) != 2 || dump.Config.Metadata.Name != p.cfg.Metadata.Name {
		t.Fatalf("pod.dump: %+v, %v", dump, err)
	}
	n.readablePod(t, r.OutputPath, dump.Containers[0].Archive, dump.Containers[1].Archive)
	for i, name := range []string{"a", "b"} {
		if got := dump.Containers[i].Name; got != name {
			t.Errorf("container %d is %q", i, got)
		}
		if files := untar(t, filepath.Join(r.OutputPath, dump.Containers[i].Archive)); len(files["checkpoint/pages-1.img"]) == 0 {
			t.Errorf("the archive of %s has no memory", name)
		}
	}

	// Nothing is left of a checkpoint that fails at the second container.
	a.p.n.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: b.id})
	r = request(func(*runtimeapi.CheckpointPodRequest) {})
	_, err = try(t, n.Runtime.CheckpointPod, r)
	wantCode(t, err, codes.FailedPrecondition, "exited")
	if left, err := os.ReadDir(r.OutputPath); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	a.goesOn(t)
	p.remove(t)
}

// TestCheckpointInterrupted kills the daemon, the keeper and CRIU while a
// container is being checkpointed, and lets it take too long. The container goes on.
func TestCheckpointInterrupted(t *testing.T) {
	begun := filepath.Join(t.TempDir(), "begun")
	n := withCRIU(t, fmt.Sprintf("case $1 in swrk) echo $$ >%s; sleep 2;; esac", begun))
	for name, interrupt := range map[string]func(t *testing.T, criu int){
		"daemon killed": func(t *testing.T, _ int) {
			n.Kill()
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"CRIU killed": func(t *testing.T, criu int) {
			if p, err := os.FindProcess(criu); err != nil || p.Kill() != nil {
				t.Errorf("kill CRIU: %v", err)
			}
		},
		"late": func(t *testing.T, _ int) {},
	} {
		n.run(t, name, func(t *testing.T) {
			if err := os.Remove(begun); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			p := n.pod(t)
			c := p.start(t, sh(counting))
			dir := t.TempDir()
			ended := make(chan error, 1)
			go func() {
				_, err := n.Runtime.CheckpointContainer(context.WithoutCancel(t.Context()), &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: dir + "/a.tar", Timeout: 1})
				ended <- err
			}()

			var criu int
			eventually(t, "CRIU begins", func() bool {
				text, err := os.ReadFile(begun)
				if err != nil {
					return false
				}
				criu, err = strconv.Atoi(strings.TrimSpace(string(text)))
				return err == nil
			})
			interrupt(t, criu)
			select {
			case err := <-ended:
				if name == "late" {
					wantCode(t, err, codes.DeadlineExceeded)
				} else if err == nil {
					t.Error("the checkpoint succeeded")
				}
			case <-time.After(pace.Scale(callTime)):
				t.Fatal("the checkpoint does not end")
			}

			c.goesOn(t)
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			p.remove(t)
		})
	}
}

// TestCheckpointEndsWithPod stops and removes pods whose checkpoint would take long.
func TestCheckpointEndsWithPod(t *testing.T) {
	begun := filepath.Join(t.TempDir(), "begun")
	n := withCRIU(t, fmt.Sprintf("case $1 in swrk) echo >%s; sleep 1000;; esac", begun))
	for name, end := range map[string]func(t *testing.T, p *pod, c *container){
		"stopped": func(t *testing.T, p *pod, _ *container) {
			call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		},
		"removed": func(t *testing.T, p *pod, _ *container) {
			call(t, n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		},
		"container stopped": func(t *testing.T, p *pod, c *container) {
			c.stop(t, 0)
			p.remove(t)
		},
		"container told to stop": func(t *testing.T, p *pod, c *container) {
			c.stop(t, 30)
			if got := c.status(t).ExitCode; got != 7 {
				t.Errorf("exit code %d: it had no time to end", got)
			}
			p.remove(t)
		},
	} {
		n.run(t, name, func(t *testing.T) {
			if err := os.Remove(begun); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			p := n.pod(t)
			c := p.start(t, sh("trap 'exit 7' TERM; while :; do sleep 0.1; done"))
			ended := make(chan error, 1)
			go func() {
				_, err := n.Runtime.CheckpointContainer(context.WithoutCancel(t.Context()), &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: n.path("late.tar"), Timeout: 900})
				ended <- err
			}()
			eventually(t, "CRIU begins", func() bool { _, err := os.Stat(begun); return err == nil })

			end(t, p, c)
			select {
			case err := <-ended:
				wantCode(t, err, codes.FailedPrecondition, "stopped or removed")
			case <-time.After(pace.Scale(callTime)):
				t.Fatal("the checkpoint does not end")
			}
			p.remove(t)
		})
	}
}

// TestCheckpointWithoutCRIU asks for a checkpoint on a node that has none.
func TestCheckpointWithoutCRIU(t *testing.T) {
	old := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho Version: 3.17.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, lab.Options{Config: fmt.Sprintf("criu_path = %q\n", old)})
	p := n.pod(t)
	c := p.start(t, sh(counting))
	_, err := try(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: t.TempDir() + "/a.tar"})
	wantCode(t, err, codes.FailedPrecondition, "4.2.0", "3.17.1")
	c.goesOn(t)
	p.remove(t)
}
