//go:build node

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

const (
	loginName   = "org.freedesktop.login1"
	loginPath   = dbus.ObjectPath("/org/freedesktop/login1")
	loginObject = loginName + ".Manager"
)

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
	<listen>%s</listen>
	<auth>EXTERNAL</auth>
	<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
`

// login stands in for systemd's logind, on its own bus: kubelet delays the
// machine's shutdown with the descriptor from Inhibit.
type login struct {
	conn *dbus.Conn
	held *os.File // at EOF when no process delays the shutdown any more
	give *os.File
}

// startLogin returns it with the address of its bus.
func startLogin(t *testing.T) (*login, string) {
	t.Helper()
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, address), 0o644); err != nil {
		t.Fatal(err)
	}

	bus, err := lab.StartProcess(filepath.Join(dir, "bus.log"), nil, "dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", "--config-file="+config)
	if err != nil {
		testkit.Skip(t, "dbus", err.Error())
	}
	t.Cleanup(func() {
		if err := bus.Stop(); err != nil {
			t.Error(err)
		}
	})

	l := &login{}
	up := func() bool {
		l.conn, err = dbus.Connect(address)
		return err == nil
	}
	if err := bus.WaitUntil(t.Context(), 10*time.Second, up); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.conn.Close() })
	if l.held, l.give, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.held.Close() })
	if err := l.serve(); err != nil {
		t.Fatalf("stand in for logind: %v", err)
	}

	return l, address
}

func (l *login) serve() error {
	properties := map[string]any{
		"Get": func(string, string) (dbus.Variant, *dbus.Error) {
			return dbus.MakeVariant(uint64(time.Hour.Microseconds())), nil // InhibitDelayMaxUSec
		},
	}
	if err := l.conn.ExportMethodTable(properties, loginPath, "org.freedesktop.DBus.Properties"); err != nil {
		return err
	}
	if err := l.conn.Export(l, loginPath, loginObject); err != nil {
		return err
	}
	_, err := l.conn.RequestName(loginName, dbus.NameFlagDoNotQueue)
	return err
}

// Inhibit is logind's.
func (l *login) Inhibit(_, _, _, _ string) (dbus.UnixFD, *dbus.Error) {
	return dbus.UnixFD(l.give.Fd()), nil
}

// shutdown announces or cancels a shutdown.
func (l *login) shutdown(t *testing.T, comes bool) {
	t.Helper()
	if err := l.conn.Emit(loginPath, loginObject+".PrepareForShutdown", comes); err != nil {
		t.Fatal(err)
	}
}

// released waits until no process delays the shutdown.
func (l *login) released(t *testing.T) {
	t.Helper()
	l.give.Close()
	if err := l.held.SetReadDeadline(time.Now().Add(*patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := l.held.Read(make([]byte, 1)); n != 0 || os.IsTimeout(err) {
		t.Errorf("kubelet holds up the shutdown: %v", err)
	}
}

// gracefulShutdown is a shutdown of the machine: kubelet stops pods in the
// order of their priority, within their grace periods.
func (w *world) gracefulShutdown(t *testing.T) {
	s := w.space(t)
	l, address := startLogin(t)
	w.node.Env = []string{"DBUS_SYSTEM_BUS_ADDRESS=" + address}
	w.restartKubelet(t, map[string]any{"shutdownGracePeriod": "40s", "shutdownGracePeriodCriticalPods": "20s"})

	dir := filepath.Join(s.Dir, "shutdown")
	pod := `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
	%[2]s
	terminationGracePeriodSeconds: 15
	volumes: [{name: out, hostPath: {path: %[3]s, type: DirectoryOrCreate}}]
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "trap 'echo %[1]s gets SIGTERM >>/out/order; sleep 2; echo %[1]s ends >>/out/order; exit' TERM; while :; do sleep 0.1; done"]
		volumeMounts: [{name: out, mountPath: /out}]
`

	s.apply(fmt.Sprintf(pod, "usual", "", dir))
	s.apply(fmt.Sprintf(pod, "critical", "priorityClassName: system-node-critical", dir))
	s.waitReady("usual", "critical")
	l.shutdown(t, true)
	l.released(t)

	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil || string(order) != "usual gets SIGTERM\nusual ends\ncritical gets SIGTERM\ncritical ends\n" {
		t.Errorf("pods ended as %q, %v", order, err)
	}

	for _, name := range []string{"usual", "critical"} {
		s.wait("jsonpath={.status.phase}=Succeeded", "pod/"+name)
		s.expect("why "+name+" ended", s.get("pod/"+name, `{.status.conditions[?(@.type=="DisruptionTarget")].message}`), "imminent node shutdown")
	}

	s.eventually("the node says why it is not ready", s.holds("node is shutting down", "get", "node", w.node.Name, "-o", "jsonpath={.status.conditions}"))
	w.node.Env = nil
	w.restartKubelet(t, nil)
	if left := strings.TrimSpace(s.get("pods", "{.items[?(@.status.phase=='Running')].metadata.name}")); left != "" {
		t.Errorf("still running: %s", left)
	}
}
