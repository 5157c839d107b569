package systemd

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPackage takes the package through its life with a container running.
func TestPackage(t *testing.T) {
	m := install(t)
	c := m.startCounter("counter", "sleep 0.1")
	for _, test := range []struct {
		name string
		do   func(t *testing.T, m *machine, c *counter)
	}{
		{"units", testUnits},
		{"restart", func(_ *testing.T, m *machine, _ *counter) { m.run("systemctl", "restart", "crisp.service") }},
		{"stop and start", testStop},
		{"reload", func(_ *testing.T, m *machine, _ *counter) { m.run("systemctl", "reload", "crisp.service") }},
		{"daemon-reload", func(_ *testing.T, m *machine, _ *counter) { m.run("systemctl", "daemon-reload") }},
		{"kill the daemon", testKillDaemon},
		{"kill the keeper", testKillKeeper},
		{"stop the keeper", testStopKeeper},
		{"kill both", testKillBoth},
		{"upgrade", testUpgrade},
		{"upgrade with another keeper", testUpgradeKeeper},
		{"remove and reinstall", testReinstall},
		{"stop the socket and the keeper", testStopSocket},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.t = t
			test.do(t, m, c)
			c.runsOn()
		})
	}

	m.t = t
	testEnd(t, m, c)
}

// testUnits checks in which units everything runs.
func testUnits(t *testing.T, m *machine, c *counter) {
	for _, unit := range []string{"crisp.service", "crisp-keeper.socket"} {
		if got := m.property(unit, "UnitFileState") + " " + m.property(unit, "ActiveState"); got != "enabled active" {
			t.Errorf("%s is %s", unit, got)
		}
	}

	if got, want := m.cgroup(m.pid("crisp.service")), "/system.slice/crisp.service"; got != want {
		t.Errorf("the daemon is in %s, want %s", got, want)
	}
	keeper := m.pid("crisp-keeper.service")
	if got, want := m.cgroup(keeper), "/system.slice/crisp-keeper.service"; got != want {
		t.Errorf("the keeper is in %s, want %s", got, want)
	}

	if exe, err := os.Readlink("/proc/" + strconv.Itoa(keeper) + "/exe"); err != nil || !strings.HasPrefix(exe, "/memfd:") {
		t.Errorf("the keeper runs from %s (%v), not from a sealed copy", exe, err)
	}
	group := m.cgroup(c.pid())
	if want := "/crisp.slice/cri-containerd-" + c.id + ".scope"; group != want {
		t.Errorf("the container is in %s, want %s", group, want)
	}

	if limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "memory.max")); err != nil || strings.TrimSpace(string(limit)) != "67108864" {
		t.Errorf("its memory limit is %q (%v), want 64 MiB", limit, err)
	}
	if score, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid()) + "/oom_score_adj"); err != nil || strings.TrimSpace(string(score)) != "0" {
		t.Errorf("its oom_score_adj is %q (%v), want 0", score, err)
	}
}

func testStop(t *testing.T, m *machine, c *counter) {
	keeper := m.pid("crisp-keeper.service")
	m.run("systemctl", "stop", "crisp.service")
	if state := m.property("crisp.service", "ActiveState"); state != "inactive" {
		t.Errorf("the daemon is %s after a stop", state)
	}
	before := c.numbers()
	m.eventually("lines in the log without a daemon", func() bool { return c.numbers() > before })
	m.run("systemctl", "start", "crisp.service")
	if now := m.pid("crisp-keeper.service"); now != keeper {
		t.Errorf("the keeper is %d and was %d", now, keeper)
	}
}

func (m *machine) kill(unit string) {
	m.t.Helper()
	pid := m.running(unit)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	m.eventually("another process of "+unit, func() bool { now := m.pid(unit); return now != 0 && now != pid })
}

func testKillDaemon(_ *testing.T, m *machine, _ *counter) { m.kill("crisp.service") }

func testKillKeeper(_ *testing.T, m *machine, _ *counter) { m.kill("crisp-keeper.service") }

// testStopKeeper stops a keeper that has containers: it waits for them in vain,
// is killed, and the daemon activates another by the socket.
func testStopKeeper(_ *testing.T, m *machine, _ *counter) {
	pid := m.pid("crisp-keeper.service")
	m.run("systemctl", "stop", "crisp-keeper.service")
	m.eventually("another keeper", func() bool { now := m.pid("crisp-keeper.service"); return now != 0 && now != pid })
}

// testKillBoth kills daemon and keeper together: only systemd holds the
// containers' pipes. It does so more often than systemd's default start limit
// allows.
func testKillBoth(t *testing.T, m *machine, c *counter) {
	const daemon, keeper, store = "crisp.service", "crisp-keeper.service", "NFileDescriptorStore"
	stored := m.property(keeper, store)
	fast := m.startCounter("fast", ":")
	fast.runsOn()

	for range 7 {
		first, second := m.running(daemon), m.running(keeper)
		if err := errors.Join(unix.Kill(first, unix.SIGKILL), unix.Kill(second, unix.SIGKILL)); err != nil {
			t.Fatal(err)
		}

		m.eventually("another daemon and another keeper", func() bool {
			d, k := m.pid(daemon), m.pid(keeper)
			return d != 0 && d != first && k != 0 && k != second
		})
		fast.runsOn()
		c.runsOn()
	}

	fast.remove()
	m.eventually("as much in systemd's store as before: "+stored, func() bool { return m.property(keeper, store) == stored })
}

// repack rebuilds the package under another version, with a change.
func (m *machine) repack(version string, change func(tree string) error) (deb string) {
	m.t.Helper()
	tree := filepath.Join(m.t.TempDir(), "tree")
	m.run("dpkg-deb", "--raw-extract", m.deb, tree)
	control := filepath.Join(tree, "DEBIAN", "control")
	text, err := os.ReadFile(control)
	if err != nil {
		m.t.Fatal(err)
	}

	text = regexp.MustCompile(`(?m)^Version: .*$`).ReplaceAll(text, []byte("Version: "+version))
	if err := errors.Join(os.WriteFile(control, text, 0o644), change(tree)); err != nil {
		m.t.Fatal(err)
	}
	deb = filepath.Join(m.t.TempDir(), "crisp_"+version+".deb")
	m.run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, deb)
	return deb
}

// testUpgrade installs the same package under a higher version.
func testUpgrade(t *testing.T, m *machine, _ *counter) {
	deb := m.repack("98", func(string) error { return nil })
	daemon, keeper := m.pid("crisp.service"), m.pid("crisp-keeper.service")
	m.run("dpkg", "--install", deb)
	m.answers()
	if now := m.pid("crisp.service"); now == daemon {
		t.Error("the daemon is still the old one")
	}
	if now := m.pid("crisp-keeper.service"); now != keeper {
		t.Errorf("the keeper is %d and was %d", now, keeper)
	}
}

// testUpgradeKeeper installs a package whose keeper is another program, by a
// byte at its end. The process stays the same, with the new program.
func testUpgradeKeeper(t *testing.T, m *machine, _ *counter) {
	deb := m.repack("99", func(tree string) error {
		f, err := os.OpenFile(filepath.Join(tree, "usr/bin/crisp-keeper"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("\n")
		return errors.Join(err, f.Close())
	})

	pid := m.pid("crisp-keeper.service")
	size := func() int64 {
		info, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}

	before := size()
	m.run("dpkg", "--install", deb)
	m.answers()
	if now := m.pid("crisp-keeper.service"); now != pid {
		t.Fatalf("the keeper is %d and was %d", now, pid)
	}

	if after := size(); after != before+1 {
		t.Errorf("the keeper runs a program of %d bytes and ran one of %d", after, before)
	}
}

// testReinstall requires systemd to have kept its stored descriptors in the
// meantime, so that daemon and keeper can be killed together again.
func testReinstall(t *testing.T, m *machine, c *counter) {
	const store = "NFileDescriptorStore"
	keeper, stored := m.pid("crisp-keeper.service"), m.property("crisp-keeper.service", store)
	m.run("dpkg", "--remove", "crisp")
	if _, err := os.Stat("/usr/bin/crisp"); err == nil {
		t.Error("the program is still there")
	}

	before := c.numbers()
	m.eventually("lines in the log without the package", func() bool { return c.numbers() > before })
	m.run("dpkg", "--install", m.deb)
	m.answers()

	if now := m.pid("crisp-keeper.service"); now != keeper {
		t.Errorf("the keeper is %d and was %d", now, keeper)
	}
	if now := m.property("crisp-keeper.service", store); now != stored {
		t.Errorf("systemd stores %s descriptors and had %s", now, stored)
	}

	if state := m.property("crisp-keeper.socket", "ActiveState"); state != "active" {
		t.Errorf("the socket is %s", state)
	}
	if left, _ := filepath.Glob("/run/systemd/system/crisp*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	testKillBoth(t, m, c)
}

// testStopSocket stops the keeper with its socket, so that the daemon has to
// start one itself, which a restart of the daemon must find though that starts
// the socket again.
func testStopSocket(t *testing.T, m *machine, c *counter) {
	m.run("systemctl", "stop", "crisp-keeper.socket", "crisp-keeper.service")
	c.runsOn()
	fast := m.startCounter("fast", ":")
	m.run("systemctl", "restart", "crisp.service")
	fast.runsOn()
	c.runsOn()
	if state := m.property("crisp-keeper.socket", "ActiveState"); state != "active" {
		t.Errorf("the socket is %s", state)
	}
	if pid := m.pid("crisp-keeper.service"); pid != 0 {
		t.Errorf("there is a second keeper, process %d", pid)
	}
	fast.remove()
}

// purge removes the package when there are no pods any more.
func (m *machine) purge() {
	m.t.Helper()
	m.run("dpkg", "--purge", "crisp")
	m.eventually("the end of the keeper, which holds nothing", func() bool { return m.pid("crisp-keeper.service") == 0 })
	// systemd keeps a slice that it created until it is stopped.
	m.run("systemctl", "stop", "crisp.slice")
}

// testEnd removes the pod and the package, after which nothing may be left.
func testEnd(t *testing.T, m *machine, c *counter) {
	group := m.cgroup(c.pid())
	c.remove()
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", group)); err == nil {
		t.Errorf("the container's cgroup %s is still there", group)
	}

	m.purge()
	for _, unit := range []string{"crisp.service", "crisp-keeper.socket", "crisp-keeper.service"} {
		if state := m.property(unit, "LoadState") + " " + m.property(unit, "ActiveState"); state != "not-found inactive" {
			t.Errorf("%s is %s after the package's end", unit, state)
		}
	}

	if failed := m.run("systemctl", "list-units", "--no-legend", "--plain", "--state=failed", "crisp*"); failed != "" {
		t.Errorf("units that failed: %s", failed)
	}

	// A new installation must be like the first one.
	m.run("dpkg", "--install", m.deb)
	m.answers()
	if pid := m.pid("crisp-keeper.service"); pid == 0 {
		t.Error("after another installation the keeper is not systemd's")
	}
	m.purge()
}
