package network

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crisp/network/cni/cnitest"
)

// scripted is a plugin that runs in this process: a process takes milliseconds,
// and starting it reaches other code from time to time, which the fuzz engine
// takes for the input's doing and spends its time on.
type scripted struct {
	answer []byte
	fails  bool
}

func (s *scripted) run(_ context.Context, cmd *exec.Cmd, _ time.Duration) error {
	if !slices.Contains(cmd.Env, "CNI_COMMAND=ADD") {
		return nil
	}
	if _, err := cmd.Stdout.Write(s.answer); err != nil {
		return err
	}
	if s.fails {
		return errors.New("exit status 1")
	}
	return nil
}

// fuzzNode is a network of one plugin, whose configuration has a version.
func fuzzNode(f *testing.F, version string, plugin *scripted) *Network {
	f.Helper()
	plugins, conf := cnitest.New(f, "one"), f.TempDir()
	text := `{"cniVersion":"` + version + `","name":"net","plugins":[{"type":"one"}]}`
	if err := os.WriteFile(filepath.Join(conf, "10-net.conflist"), []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	n, err := Open(Options{ConfDir: conf, BinDirs: []string{plugins.Dir}, CacheDir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	n.client.RunBy(plugin.run)
	return n
}

// FuzzAnswer has a plugin answer an ADD with anything, as a success and as a
// failure. Either there are addresses that a pod's status can show, or there is
// an error; and what was attached can be detached.
func FuzzAnswer(f *testing.F) {
	answers := []string{
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"fd00::3/64","interface":7}]}`,
		`{"cniVersion":"1.1.0","interfaces":[null],"ips":[{"address":"10.1.2.3/24","interface":0}]}`,
		`{"cniVersion":"1.1.0","interfaces":[],"ips":[null]}`,
		`{"cniVersion":"1.1.0","ips":[{"address":null}],"routes":[null],"dns":null}`,
		`{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24","interface":-1}]}`,
		`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.3/24"}],"interfaces":[null],"routes":[null]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","routes":[null]},"ip6":{}}`,
		`{"cniVersion":"0.2.0","ip4":null}`,
		`{"cniVersion":"9.9.9"}`, `{"cniVersion":7}`, `{"code":11,"msg":"try again"}`, `{"code":-1}`,
		`null`, `[]`, `""`, ``, "\x00", `{"ips":` + strings.Repeat("[", 20000),
	}

	for _, answer := range answers {
		f.Add(false, []byte(answer))
	}
	f.Add(true, []byte(`{"cniVersion":"1.1.0","code":11,"msg":"\u001b[2J","details":"x"}`))
	f.Add(true, []byte(`null`))

	plugin := &scripted{}
	var networks []*Network
	for _, version := range []string{"1.1.0", "0.4.0", "0.2.0"} {
		networks = append(networks, fuzzNode(f, version, plugin))
	}

	f.Fuzz(func(t *testing.T, fails bool, answer []byte) {
		*plugin = scripted{answer: answer, fails: fails}
		for _, n := range networks {
			checkAnswer(t, n, fails)
		}
	})
}

func checkAnswer(t *testing.T, n *Network, fails bool) {
	t.Helper()
	result, err := n.Attach(t.Context(), web)
	switch {
	case err != nil:
	case fails:
		t.Errorf("a plugin that failed attached a pod: %+v", result)
	case len(result.IPs) == 0 || !json.Valid(result.Raw):
		t.Errorf("attached without an address, or a result to show: %+v", result)
	}

	for _, ip := range result.IPs {
		if !ip.IsValid() {
			t.Errorf("address %v", ip)
		}
	}

	if err := n.Detach(t.Context(), web); err != nil {
		t.Errorf("detach: %v", err)
	}
	if ids, err := n.client.Attached(); err != nil || len(ids) != 0 {
		t.Errorf("still attached: %q, %v", ids, err)
	}
}
