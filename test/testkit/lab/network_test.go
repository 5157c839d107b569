package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func TestWriteNetwork(t *testing.T) {
	dir := t.TempDir()
	if err := writeNetwork(dir, "/data", "crisp7", "10.128.7.0/24", true); err != nil {
		t.Fatal(err)
	}

	list, err := libcni.ConfListFromFile(filepath.Join(dir, "10-crisp7.conflist"))
	if err != nil {
		t.Fatal(err)
	}

	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	if got := strings.Join(types, " "); got != "bridge portmap" {
		t.Errorf("got plugins %s, want bridge portmap", got)
	}
}

func TestWriteHosts(t *testing.T) {
	dir := t.TempDir()
	r := &Registry{Addr: "127.0.0.1:5000"}
	if err := r.WriteHosts(dir); err != nil {
		t.Fatal(err)
	}

	for _, host := range hosts {
		text, err := os.ReadFile(filepath.Join(dir, host, "hosts.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if want := `[host."http://127.0.0.1:5000"]`; !strings.Contains(string(text), want) {
			t.Errorf("%s: want %s in:\n%s", host, want, text)
		}
	}
}

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := StartProcess(log, []string{"WORD=quick"}, "sh", "-c", "echo $WORD brown fox; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = p.WaitUntil(t.Context(), stopTime, func() bool { return false })
	if err == nil || !strings.Contains(err.Error(), "quick brown fox") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want an error with the exit status and the log", err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop a process that has exited: %v", err)
	}
}
