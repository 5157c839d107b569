//go:build crash

package crash

import (
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
)

const bootID = "/proc/sys/kernel/random/boot_id"

// damages are ways in which a power cut, or a downgrade, may damage a record.
var damages = []struct {
	name string
	do   func(path string) error
}{
	{"intact", func(string) error { return nil }},
	{"empty", func(path string) error { return os.Truncate(path, 0) }},
	{"truncated", func(path string) error { return os.Truncate(path, 100) }},
	{"garbage", func(path string) error { return os.WriteFile(path, []byte("\x00\x00\xff{"), 0o600) }},
	{"of a later version", func(path string) error {
		data := `{"Version": 99, "ID": "x"}`
		sum := crc32.Checksum([]byte(data), crc32.MakeTable(crc32.Castagnoli))
		return os.WriteFile(path, fmt.Appendf(nil, "%08x %s\n", sum, data), 0o600)
	}},
	{"with a torn last line", func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, int64(len(data)-20))
	}},
	{"missing", os.Remove},
}

// TestFaultReboot starts the daemon after a simulated reboot of the machine.
func TestFaultReboot(t *testing.T) {
	n := newNode(t)
	score := score{first: "pod"}
	for _, k := range kinds {
		for _, d := range damages {
			if d.name != "intact" && k.name != kinds[0].name {
				continue
			}
			score.add(k.name, "record "+d.name, t.Run(k.name+"/"+d.name, func(t *testing.T) { n.rebooted(t, k, d.do, d.name == "intact") }))
		}
	}
	score.publish(t, "reboots")
}

func (n *node) rebooted(t *testing.T, k kind, damage func(string) error, intact bool) {
	s, other := n.newScene(t), n.newScene(t)
	k.change(s)
	s.container.Metadata.Attempt = 3
	defer n.tidy(t, s)

	s.run()
	s.container.Command = []string{"sh", "-c", "echo last words; exit 7"}
	s.create()
	s.start()

	ended := s.containerID
	s.wantEnd()
	s.container.Command, s.container.Metadata.Attempt, s.container.LogPath = []string{"sleep", "1000"}, 4, "main-4.log"
	s.create()
	s.start()
	kinds[2].change(other) // another pod, which must not be affected
	other.pod.Metadata.Name = "other"
	other.run()
	n.reboot(t, func() {
		s.must("damage the record", damage(filepath.Join(n.Dir, "root/pods", s.podID, "record.jsonl")))
	})

	pods := s.pods()
	if len(pods) != 2 {
		t.Fatalf("pods are %v, want two", pods)
	}

	for _, p := range pods {
		if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod %s is %v", p.Metadata.Name, p.State)
		}
		call(t, n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
	}

	if intact {
		s.wantPrevious(ended)
		s.nextAttempt()
	}

	s.must("stop pod", s.tryStopPod())
	if left := n.Leases(); len(left) > 0 {
		t.Errorf("addresses %q are leased after the stop", left)
	}

	s.must("remove pod", s.tryRemovePod())
	other.must("remove other pod", other.tryRemovePod())
	s.pod.Metadata.Attempt = 9
	s.run() // the machine works as before
	s.create()
	s.start()
	s.wantAlive()
}

// wantEnd waits until the container has exited.
func (s *scene) wantEnd() {
	s.t.Helper()
	for end := time.Now().Add(callTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		st := call(s.t, s.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: s.containerID}).Status
		if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return
		}
	}
	s.t.Fatal("the container does not exit")
}

// wantPrevious checks the status of containers of the previous boot.
func (s *scene) wantPrevious(ended string) {
	s.t.Helper()
	for id, want := range map[string]struct {
		code    int32
		attempt uint32
	}{ended: {7, 3}, s.containerID: {255, 4}} {
		st := call(s.t, s.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id}).Status
		if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != want.code || st.Metadata.Attempt != want.attempt || st.Reason == "" || st.FinishedAt < st.StartedAt {
			s.t.Errorf("container %s is %v, want code %d and attempt %d", id, st, want.code, want.attempt)
		}
		log, err := os.ReadFile(st.LogPath)
		if err != nil || id == ended && !strings.Contains(string(log), "last words") {
			s.t.Errorf("the log of container %s: %q, %v", id, log, err)
		}
	}
}

// nextAttempt runs the pod with which kubelet would replace this one.
func (s *scene) nextAttempt() {
	s.t.Helper()
	next := s.n.newScene(s.t)
	next.pod.PortMappings = nil
	next.pod.Metadata.Uid, next.pod.Metadata.Attempt = s.pod.Metadata.Uid, s.pod.Metadata.Attempt+1
	next.run()
	next.create()
	next.start()
	next.must("remove the next attempt", next.tryRemovePod())
}

// reboot kills everything, and starts the daemon with what is on disk.
func (n *node) reboot(t *testing.T, meanwhile func()) {
	t.Helper()
	n.Kill()
	n.killKeeper(t)
	n.powerOff(t)
	meanwhile()

	id := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(id, fmt.Appendf(nil, "00000000-0000-0000-0000-%012x\n", time.Now().UnixNano()&0xffffffffffff), 0o444); err != nil {
		t.Fatal(err)
	}

	if err := unix.Mount(id, bootID, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("change the boot ID: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bootID, unix.MNT_DETACH) })
	n.begin(t)

	// As kubelet does: an image that was pulled just before is not trusted.
	if !n.has(t, busybox) {
		n.pull(t, busybox)
	}
}

// powerOff removes everything that does not survive a reboot.
func (n *node) powerOff(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(callTime); ; time.Sleep(5 * time.Millisecond) {
		busy := false
		for _, dir := range slices.Backward(inventory.Cgroups(n.Name)) {
			data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // it may be gone
			for _, f := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			busy = unix.Rmdir(dir) != nil || busy
		}
		if inventory.Descendants(os.Getpid()); !busy { // reaps them
			break
		}

		if time.Now().After(end) {
			t.Fatal("some processes do not exit")
		}
	}

	for _, point := range inventory.MountsBelow(filepath.Join(n.Dir, "state")) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}

	if err := os.RemoveAll(filepath.Join(n.Dir, "state")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-t", "nat", "-F"}, {"-t", "nat", "-X"}, {"-F"}, {"-X"}} {
		if out, err := exec.CommandContext(t.Context(), "iptables", args...).CombinedOutput(); err != nil {
			t.Fatalf("iptables %v: %v: %s", args, err, out)
		}
	}

	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}

	for _, l := range links {
		if l.Name == "lo" {
			continue
		}
		if link, err := netlink.LinkByName(l.Name); err == nil {
			_ = netlink.LinkDel(link) // it is removed with its peer
		}
	}
}
