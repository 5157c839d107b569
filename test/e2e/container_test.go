package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

func TestContainers(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "read-only root", func(t *testing.T) {
		c := n.pod(t).start(t, mount(t.TempDir(), "/mnt"), func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true })
		if r := c.exec(t, "touch", "/file"); r.ExitCode == 0 || !strings.Contains(string(r.Stderr), "Read-only file system") {
			t.Errorf("touch in the root: %v", r)
		}
		c.sh(t, "touch /mnt/file /dev/shm/file; echo x > /dev/null")
	})

	n.run(t, "termination message", func(t *testing.T) { testTerminationMessage(t, n) })
	n.run(t, "ends", func(t *testing.T) { testEnds(t, n) })
	n.run(t, "stop signals", func(t *testing.T) { testStopSignals(t, n) })
	n.run(t, "lack of memory", func(t *testing.T) { testOutOfMemory(t, n) })
	n.run(t, "status", func(t *testing.T) { testStatus(t, n) })
	n.run(t, "why it ended", func(t *testing.T) { testWhyEnded(t, n) })
	n.run(t, "image without a tag", func(t *testing.T) { testUntagged(t, n) })
	n.run(t, "verbose answers", func(t *testing.T) { testVerbose(t, n) })
	n.run(t, "five that do not want to", func(t *testing.T) { testStubborn(t, n) })
}

// testTerminationMessage finds on the node what a container wrote to the
// file that kubelet mounts for this.
func testTerminationMessage(t *testing.T, n *node) {
	const path = "/dev/termination-log"
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}

	c := n.pod(t).start(t, sh("echo why > "+path+"; exit 1"), mount(file, path))
	c.wantEnd(t, 1, "Error")
	for _, m := range c.status(t).Mounts {
		if m.ContainerPath == path {
			file = m.HostPath
		}
	}

	c.remove(t)
	if got := slurp(file); got != "why\n" {
		t.Errorf("the message is %q", got)
	}
}

func testEnds(t *testing.T, n *node) {
	p := n.pod(t, sharedPID) // where a container's first process is not PID 1, which ignores signals
	for script, want := range map[string]struct {
		code   int32
		reason string
	}{
		"exit 0":        {0, "Completed"},
		"exit 3":        {3, "Error"},
		"exit 255":      {255, "Error"},
		"kill -9 $$":    {137, "Error"},
		"kill -TERM $$": {143, "Error"},
		"kill -SEGV $$": {139, "Error"},
	} {
		before := time.Now()
		c := p.start(t, sh(script))
		c.wantEnd(t, want.code, want.reason)
		st := c.status(t)
		created, started, finished := time.Unix(0, st.CreatedAt), time.Unix(0, st.StartedAt), time.Unix(0, st.FinishedAt)
		if created.Before(before) || started.Before(created) || finished.Before(started) || time.Now().Before(finished) {
			t.Errorf("%q: created %v, started %v, finished %v", script, created, started, finished)
		}
		c.remove(t)
	}

	created := p.create(t)
	if st := created.status(t); st.State != runtimeapi.ContainerState_CONTAINER_CREATED || st.StartedAt != 0 || st.FinishedAt != 0 || st.CreatedAt == 0 {
		t.Errorf("a created container is %v", st)
	}
}

func testStopSignals(t *testing.T, n *node) {
	p := n.pod(t)
	const script = "trap 'exit 1' TERM; trap 'exit 2' USR1; echo; while :; do sleep 0.02; done"
	for name, want := range map[string]struct {
		signal runtimeapi.Signal
		code   int32
	}{
		"by default": {runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, 1},
		"chosen":     {runtimeapi.Signal_SIGNAL_SIGUSR1, 2},
	} {
		c := p.start(t, named(name), sh(script), func(c *runtimeapi.ContainerConfig) { c.StopSignal = want.signal })
		eventually(t, "the container is ready for signals", func() bool { return slurp(c.logFile()) != "" })
		began := time.Now()
		c.stop(t, 20)

		if took := time.Since(began); took > pace.Scale(15*time.Second) {
			t.Errorf("%s: the stop took %v", name, took)
		}
		c.wantEnd(t, want.code, "Error")

		shown := want.signal
		if shown == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			shown = runtimeapi.Signal_SIGNAL_SIGTERM
		}
		if got := c.status(t).StopSignal; got != shown {
			t.Errorf("%s: the status says %v", name, got)
		}
	}
}

// testOutOfMemory has the kernel OOM-kill a container's first process, and only
// a child of another.
func testOutOfMemory(t *testing.T, n *node) {
	const hog = "dd if=/dev/zero of=/dev/null bs=200M"
	p := n.pod(t)
	p.start(t, named("first"), sh("exec "+hog), memory(20<<20)).wantEnd(t, 137, "OOMKilled")
	p.start(t, named("child"), sh(hog+"; exit 0"), memory(20<<20)).wantEnd(t, 0, "Completed")
	c := p.start(t, named("command"), memory(20<<20))
	if r := c.exec(t, "sh", "-c", "exec "+hog); r.ExitCode != 137 {
		t.Errorf("a command that lacked memory has exit code %d, want 137", r.ExitCode)
	}
	if st := c.status(t).State; st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("its container is %v", st)
	}
}

// testStatus requires complete information in a container's status.
func testStatus(t *testing.T, n *node) {
	img := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}).Image
	id := img.Id
	p := n.pod(t)
	c := p.start(t, image(id), func(c *runtimeapi.ContainerConfig) {
		c.Image.UserSpecifiedImage = busybox
		c.Metadata.Attempt = 4
		c.Labels = map[string]string{"l": "v"}
		c.Annotations = map[string]string{"a": strings.Repeat("ü", 50_000)}
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: t.TempDir(), ContainerPath: "/ro", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_PRIVATE},
			{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: "etc", Readonly: true},
		}

		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 200, MemoryLimitInBytes: 50 << 20}
		c.Linux.SecurityContext.RunAsUsername = "www-data"
		c.Linux.SecurityContext.SupplementalGroups = []int64{9}
	})

	st := c.status(t)
	want := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.cfg.Metadata, State: runtimeapi.ContainerState_CONTAINER_RUNNING,
		CreatedAt: st.CreatedAt, StartedAt: st.StartedAt,
		Image: &runtimeapi.ImageSpec{Image: busybox, UserSpecifiedImage: busybox}, ImageRef: img.RepoDigests[0], ImageId: id,
		Labels: c.cfg.Labels, Annotations: c.cfg.Annotations, LogPath: c.logFile(),
		Mounts:     []*runtimeapi.Mount{c.cfg.Mounts[0], proto.Clone(c.cfg.Mounts[1]).(*runtimeapi.Mount)},
		Resources:  &runtimeapi.ContainerResources{Linux: proto.Clone(c.cfg.Linux.Resources).(*runtimeapi.LinuxContainerResources)},
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 33, Gid: 33, SupplementalGroups: []int64{33, 9}}},
		StopSignal: runtimeapi.Signal_SIGNAL_SIGTERM,
	}

	want.Mounts[1].Image.ImageRef = id
	want.Resources.Linux.MemorySwapLimitInBytes = 50 << 20 // no swap
	if !proto.Equal(st, want) {
		st.Annotations, want.Annotations = nil, nil // too long to read
		t.Errorf("the status is\n%v, want\n%v", st, want)
	}

	item := call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		Id: c.id[:13], PodSandboxId: p.id, LabelSelector: map[string]string{"l": "v"},
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}}).Containers

	if len(item) != 1 || item[0].Id != c.id || item[0].PodSandboxId != p.id || item[0].ImageId != id || item[0].GetImage().GetImage() == "" {
		t.Errorf("listed is %v", item)
	}
	if got := c.sh(t, "ls /image | grep passwd; touch /ro/x /image/x 2>&1 | grep -c Read-only"); got != "passwd\n2" {
		t.Errorf("the mounts show %q", got)
	}
}

// testUntagged removes the image of a running container.
func testUntagged(t *testing.T, n *node) {
	const ref = "gcr.io/k8s-staging-cri-tools/test-image-1:latest"
	id := n.pull(t, ref)
	digested := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}}).Image.RepoDigests[0]
	c := n.pod(t).create(t, image(id))
	call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	c.start(t)
	c.sh(t, "ls /bin/busybox")
	if st := c.status(t); st.Image.GetImage() != ref || st.ImageRef != digested || st.ImageId != id {
		t.Errorf("the status says image %v, %q, %q, want %s of %s", st.Image, st.ImageRef, st.ImageId, digested, id)
	}
	if img := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}}).Image; img != nil {
		t.Errorf("the removed image is still there: %v", img)
	}
}

// testStubborn stops a pod of containers that ignore SIGTERM.
func testStubborn(t *testing.T, n *node) {
	p := n.pod(t)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		p.start(t, named(name), sh("trap '' TERM; while :; do sleep 1; done"))
	}

	began := time.Now()
	call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	if took := time.Since(began); took > pace.Scale(8*time.Second) {
		t.Errorf("the stop took %v", took)
	}

	for _, c := range call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container %s is %v", c.Metadata.Name, c.State)
		}
	}
}

func TestUpdate(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "merge", func(t *testing.T) { testMerge(t, n) })
	n.run(t, "unified", func(t *testing.T) { testUnified(t, n) })
	n.run(t, "below usage", func(t *testing.T) { testBelowUsage(t, n) })
	n.run(t, "created", func(t *testing.T) {
		c := n.pod(t).create(t, memory(64<<20))
		c.update(t, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20})
		c.start(t)
		if got, want := c.limits(t)["memory"], "134217728"; got != want {
			t.Errorf("the limit is %s, want %s", got, want)
		}
	})

	n.run(t, "OOM score", func(t *testing.T) {
		c := n.pod(t).start(t, sh("sleep 1000 & wait"))
		c.update(t, &runtimeapi.LinuxContainerResources{OomScoreAdj: 321})
		if got := c.sh(t, "for p in 1 $(pidof sleep) self; do cat /proc/$p/oom_score_adj; done | sort -u"); got != "321" {
			t.Errorf("scores of the processes and of a command are %q", got)
		}

		created := n.pod(t).create(t)
		created.update(t, &runtimeapi.LinuxContainerResources{OomScoreAdj: 123})
		created.start(t)
		if got := created.sh(t, "cat /proc/1/oom_score_adj"); got != "123" {
			t.Errorf("the score of one that was not started is %q", got)
		}
	})

	n.run(t, "pod", func(t *testing.T) {
		p := n.pod(t)
		call(t, n.Runtime.UpdatePodSandboxResources, &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 500},
		})
	})
}

// cgroupV2 reports whether the machine has only the unified hierarchy.
func cgroupV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// testUnified sets options that only version 2 has, as kubelet does for memory
// QoS and group OOM kills.
func testUnified(t *testing.T, n *node) {
	if !cgroupV2() {
		testkit.Skip(t, "cgroup2", "unified resources are its")
	}
	c := n.pod(t).start(t, memory(64<<20), func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.Unified = map[string]string{"memory.high": "50331648", "memory.oom.group": "1"}
	})

	want := func(high string) {
		t.Helper()
		if got := c.sh(t, "cd /sys/fs/cgroup; echo $(cat memory.max memory.high memory.oom.group)"); got != "67108864 "+high+" 1" {
			t.Errorf("memory.max, memory.high and memory.oom.group are %s", got)
		}
	}

	want("50331648")
	c.update(t, &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "40000000"}})
	want("39997440") // whole pages
}

// limits reads the effective limits inside the container.
func (c *container) limits(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{
		"memory": "memory/memory.limit_in_bytes", "cpuset": "cpuset/cpuset.cpus", "quota": "cpu/cpu.cfs_quota_us", "shares": "cpu/cpu.shares",
	}
	if cgroupV2() {
		files = map[string]string{"memory": "memory.max", "cpuset": "cpuset.cpus", "quota": "cpu.max", "shares": "cpu.weight"}
	}
	limits := map[string]string{}
	for name, file := range files {
		value, _, _ := strings.Cut(c.sh(t, "cat /sys/fs/cgroup/"+file), " ") // quota and period share a file
		limits[name] = value
	}
	return limits
}

// testMerge changes one limit at a time, which keeps the others.
func testMerge(t *testing.T, n *node) {
	c := n.pod(t).start(t, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512}
	})
	pid := c.pid(t)
	want := c.limits(t)
	for _, change := range []struct {
		name   string
		update *runtimeapi.LinuxContainerResources
		value  string
	}{
		{"cpuset", &runtimeapi.LinuxContainerResources{CpusetCpus: "0"}, "0"},
		{"memory", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}, "100663296"},
		{"quota", &runtimeapi.LinuxContainerResources{CpuQuota: 70000}, "70000"},
		{"cpuset", &runtimeapi.LinuxContainerResources{CpusetCpus: "0"}, "0"},
		{"memory", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}, "33554432"},
	} {
		c.update(t, change.update)
		want[change.name] = change.value
		if got := c.limits(t); !maps.Equal(got, want) {
			t.Errorf("after a change of %s the limits are %v, want %v", change.name, got, want)
		}
	}

	shown := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuQuota: 70000, CpuPeriod: 100000, CpuShares: 512, CpusetCpus: "0", MemorySwapLimitInBytes: 32 << 20}
	if got := c.status(t).Resources.Linux; !proto.Equal(got, shown) {
		t.Errorf("the status shows %v, want %v", got, shown)
	}

	// The devices are as before, and so is the process.
	c.sh(t, "echo x > /dev/null; cat /dev/urandom | head -c 1 > /dev/null")
	if now := c.pid(t); now != pid {
		t.Errorf("the process is %d and was %d", now, pid)
	}
}

// testBelowUsage requests a memory limit below the usage.
func testBelowUsage(t *testing.T, n *node) {
	c := n.pod(t).start(t, memory(128<<20))
	c.sh(t, "head -c 33554432 /dev/zero > /dev/shm/ballast") // cannot be reclaimed
	before, limits := c.status(t).Resources, c.limits(t)
	err := failure(t, n.Runtime.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 8 << 20, CpuShares: 700},
	})

	if err == nil {
		t.Error("the limit was accepted")
	}
	wantCode(t, err, codes.FailedPrecondition, "8388608 bytes is below")

	if st := c.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || !proto.Equal(st.Resources, before) {
		t.Errorf("after a refused change the container is %v with %v", st.State, st.Resources)
	}
	if got := c.limits(t); !maps.Equal(got, limits) {
		t.Errorf("after a refused change the limits are %v, were %v", got, limits)
	}
}

// testVerbose checks the parts of verbose responses that tools read.
func testVerbose(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t)
	c.update(t, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 77 << 20})
	var of struct {
		Pid         int
		RuntimeSpec specs.Spec
		CniResult   struct {
			Interfaces map[string]struct{ IPConfigs []struct{ IP string } }
		}
		ImageSpec struct{ Architecture string }
		ChainID   string
	}

	read := func(info map[string]string) {
		t.Helper()
		if err := json.Unmarshal([]byte(info["info"]), &of); err != nil {
			t.Fatal(err)
		}
	}

	netns := func() string {
		for _, ns := range of.RuntimeSpec.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				return ns.Path
			}
		}
		return ""
	}

	pod := call(t, n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	read(pod.Info)
	if _, err := os.Stat(netns()); err != nil || of.Pid == 0 {
		t.Errorf("the sandbox has process %d and network %q, %v", of.Pid, netns(), err)
	}

	if ip := pod.Status.Network.Ip; ip != "" && of.CniResult.Interfaces["eth0"].IPConfigs[0].IP != ip {
		t.Errorf("the plugins' answer is %v, the pod has %s", of.CniResult, ip)
	}
	of.RuntimeSpec, of.Pid = specs.Spec{}, 0
	read(call(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true}).Info)

	if _, err := os.Stat(netns()); err != nil || of.Pid != c.pid(t) || *of.RuntimeSpec.Linux.Resources.Memory.Limit != 77<<20 {
		t.Errorf("the container has process %d, network %q and memory %v", of.Pid, netns(), of.RuntimeSpec.Linux.Resources.Memory)
	}
	read(call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}, Verbose: true}).Info)

	if of.ImageSpec.Architecture == "" || of.ChainID == "" {
		t.Errorf("the image's architecture is %q, its chain ID %q", of.ImageSpec.Architecture, of.ChainID)
	}
	info := call(t, n.Runtime.Status, &runtimeapi.StatusRequest{Verbose: true}).Info
	if got := info["lastCNILoadStatus"]; got != "OK" {
		t.Errorf("the state of the network's configuration is %q", got)
	}
}

// testWhyEnded ends containers in ways that an exit code does not distinguish.
func testWhyEnded(t *testing.T, n *node) {
	profile := filepath.Join(t.TempDir(), "kill.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_KILL_PROCESS"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		changes []change
		code    int32
		says    []string
	}{
		"exit":   {[]change{sh("exit 137")}, 137, nil},
		"signal": {nil, 137, []string{"signal 9", "SIGKILL"}},
		"memory": {[]change{command("tail", "/dev/zero"), memory(16 << 20)}, 137, []string{"its first process", "16777216 bytes"}},
		"seccomp": {[]change{command("mkdir", "/x"), func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
		}}, 159, []string{"SIGSYS", "seccomp"}},
	} {
		ctr := n.pod(t).start(t, c.changes...)
		if c.changes == nil {
			ctr.signal(t, unix.SIGKILL)
		}

		st := ctr.wait(t)
		if st.ExitCode != c.code || (st.Message == "") != (c.says == nil) {
			t.Errorf("%s: ended with %d, %s: %q", name, st.ExitCode, st.Reason, st.Message)
		}

		for _, part := range c.says {
			if !strings.Contains(st.Message, part) {
				t.Errorf("%s: %q does not say %q", name, st.Message, part)
			}
		}
	}
}
