package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crisp/network/cni"
	"crisp/network/cni/cnitest"
)

// node is a network with plugins and directories of its own.
type node struct {
	*cnitest.Plugins
	*Network
	conf string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{Plugins: cnitest.New(t, "one", "two"), conf: t.TempDir()}
	network, err := Open(Options{ConfDir: n.conf, BinDirs: []string{n.Dir}, CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	n.Network = network
	n.configure(t, `{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one","capabilities":{"bandwidth":true}},{"type":"two"}]}`)
	return n
}

func (n *node) configure(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.conf, "10-net.conflist"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

var web = Attachment{ID: "id1", NetNS: "/nowhere/ns", Name: "web", Namespace: "prod", UID: "u-1"}

func TestAttachPassesThePodsNames(t *testing.T) {
	n := newNode(t)
	result, err := n.Attach(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}

	want := []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}
	if !slices.Equal(result.IPs, want) {
		t.Errorf("addresses are %v", result.IPs)
	}
	if !strings.Contains(string(result.Raw), `"10.1.2.3/24"`) {
		t.Errorf("raw result is %s", result.Raw)
	}

	for _, call := range n.Calls() {
		const args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=id1;K8S_POD_UID=u-1"
		if call.Env["CNI_ARGS"] != args || call.Env["CNI_IFNAME"] != "eth0" || call.Env["CNI_NETNS"] != "/nowhere/ns" {
			t.Errorf("%s called with %v", call.Plugin, call.Env)
		}
	}
}

func TestAttachTellsWhatNobodyProvides(t *testing.T) {
	n := newNode(t)
	pod := web
	pod.PortMappings = []PortMapping{{"TCP", 80, 8080, ""}}
	pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "1M"}
	result, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(result.Unserved, []string{"portMappings"}) {
		t.Errorf("unserved are %v", result.Unserved)
	}
}

func TestAttachReadsAddressesOfThePodsInterface(t *testing.T) {
	const interfaces = `"interfaces":[{"name":"eth0"},{"name":"eth0","sandbox":"/ns"},{"name":"net1","sandbox":"/ns"}]`
	for name, test := range map[string]struct {
		ips  string
		want []string
	}{
		"another interface":      {`{"address":"10.0.0.2/24","interface":2},{"address":"10.0.0.1/24","interface":1}`, []string{"10.0.0.1"}},
		"the host's of the name": {`{"address":"10.0.0.2/24","interface":0},{"address":"10.0.0.1/24","interface":1}`, []string{"10.0.0.1"}},
		"no interface":           {`{"address":"10.0.0.1/24"}`, []string{"10.0.0.1"}},
		"order is kept":          {`{"address":"fd00::1/64","interface":1},{"address":"10.0.0.1/24","interface":1}`, []string{"fd00::1", "10.0.0.1"}},
		"none":                   {`{"address":"10.0.0.2/24","interface":2}`, nil},
		"out of range":           {`{"address":"10.0.0.2/24","interface":3}`, nil},
		"negative":               {`{"address":"10.0.0.2/24","interface":-1}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.Answer("two", `{"cniVersion":"1.1.0",`+interfaces+`,"ips":[`+test.ips+`]}`)
			result, err := n.Attach(t.Context(), web)
			var got []string
			for _, ip := range result.IPs {
				got = append(got, ip.String())
			}

			if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
				t.Errorf("got %v, %v", got, err)
			}
			if calls := n.Summary(); err != nil && !slices.Equal(calls, []string{"one ADD", "two ADD", "two DEL", "one DEL"}) {
				t.Errorf("called %v", calls)
			}
		})
	}
}

func TestAttachWithoutAddressSaysSo(t *testing.T) {
	n := newNode(t)
	n.Answer("two", `{"cniVersion":"1.1.0"}`)
	if _, err := n.Attach(t.Context(), web); !errors.Is(err, ErrNoAddress) {
		t.Errorf("got %v", err)
	}
}

func TestAttachBeforeTheNetworkIsReady(t *testing.T) {
	n := newNode(t)
	if err := os.RemoveAll(n.conf); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(t.Context(), web); !errors.Is(err, ErrNotReady) {
		t.Errorf("got %v", err)
	}
	if err := n.Detach(t.Context(), web); err != nil {
		t.Errorf("detach: %v", err)
	}
	if got := n.Summary(); got != nil {
		t.Errorf("called %v", got)
	}
}

// What is not there could not be asked to take an attachment back.
// TestSetDirs attaches new pods with other plugins, and detaches those that are attached
// by the configuration that they have.
func TestSetDirs(t *testing.T) {
	n := newNode(t)
	if _, err := n.Attach(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	plugins, conf := cnitest.New(t, "one", "two", "three"), t.TempDir()
	n.SetDirs(conf, []string{plugins.Dir})
	if err := n.Ready(); !errors.Is(err, cni.ErrNoConfig) {
		t.Errorf("without a configuration: %v", err)
	}
	text := `{"cniVersion":"1.1.0","name":"other","plugins":[{"type":"three"}]}`
	if err := os.WriteFile(filepath.Join(conf, "10-other.conflist"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	later := web
	later.ID = "id2"
	if _, err := n.Attach(t.Context(), later); err != nil {
		t.Error(err)
	}
	if err := errors.Join(n.Detach(t.Context(), web), n.Detach(t.Context(), later)); err != nil {
		t.Error(err)
	}
	if info := n.Info().(Info); info.ConfDir != conf || !slices.Equal(info.BinDirs, []string{plugins.Dir}) || !strings.Contains(string(info.Network), "other") {
		t.Errorf("info is %+v", info)
	}
	var calls []string
	for _, c := range plugins.Calls() {
		calls = append(calls, c.Plugin+" "+c.Command+" "+c.Env["CNI_CONTAINERID"])
	}
	if want := []string{"three ADD id2", "two DEL id1", "one DEL id1", "three DEL id2"}; !slices.Equal(calls, want) {
		t.Errorf("calls of the plugins are %q, want %q", calls, want)
	}
}

func TestReadyMissesAPlugin(t *testing.T) {
	n := newNode(t)
	if err := n.Ready(); err != nil {
		t.Errorf("healthy: %v", err)
	}
	n.configure(t, `{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "no-such-plugin"}]}`)
	if err := n.Ready(); !errors.Is(err, ErrNotReady) || !errors.Is(err, cni.ErrNoPlugin) || !strings.Contains(err.Error(), "no-such-plugin") {
		t.Errorf("got %v", err)
	}
}

func TestAttachFailingTwiceSaysBoth(t *testing.T) {
	n := newNode(t)
	n.Fail("two", "ADD", 11, "no address left")
	n.Fail("one", "DEL", 11, "busy")
	_, err := n.Attach(t.Context(), web)
	for _, want := range []string{"attach network: plugin two: ADD: no address left (code 11)", "plugin one: DEL: busy (code 11)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}

	n.Heal("one", "DEL")
	n.Calls()
	n.configure(t, `{"cniVersion":"1.1.0","name":"other","plugins":[{"type":"two"}]}`)
	if err := n.Detach(t.Context(), web); err != nil {
		t.Fatal(err)
	}

	if got := n.Summary(); !slices.Equal(got, []string{"two DEL", "one DEL"}) {
		t.Errorf("called %v", got)
	}
}

func TestDetachTellsWhenTheNamespaceIsGone(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for name, test := range map[string]struct{ path, want string }{
		"no path":     {"", ""},
		"no file":     {"/nowhere/ns", ""},
		"plain file":  {plain, ""},
		"a namespace": {"/proc/self/ns/net", "/proc/self/ns/net"},
		"another one": {"/proc/self/ns/mnt", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if _, err := n.Attach(t.Context(), web); err != nil {
				t.Fatal(err)
			}

			n.Calls()
			pod := web
			pod.NetNS = test.path
			if err := n.Detach(t.Context(), pod); err != nil {
				t.Fatal(err)
			}

			calls := n.Calls()
			if len(calls) != 2 {
				t.Fatalf("called %v", calls)
			}

			for _, call := range calls {
				if got := call.Env["CNI_NETNS"]; got != test.want {
					t.Errorf("%s got %q", call.Plugin, got)
				}
			}
		})
	}
}

func TestDetachOfWhatAttachRefused(t *testing.T) {
	n := newNode(t)
	pod := web
	pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"}
	if _, err := n.Attach(t.Context(), pod); !errors.Is(err, ErrInvalid) {
		t.Errorf("attach: %v", err)
	}
	if got := n.Summary(); got != nil {
		t.Errorf("called %v", got)
	}
	if err := n.Detach(t.Context(), pod); err != nil {
		t.Errorf("detach: %v", err)
	}
}

func TestStatusAndInfo(t *testing.T) {
	n := newNode(t)
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("healthy: %v", err)
	}

	if info := n.Info().(Info); info.Error != "" || !strings.Contains(string(info.Network), `"net"`) || filepath.Base(info.File) != "10-net.conflist" {
		t.Errorf("info is %+v", info)
	}
	n.Fail("two", "STATUS", 51, "limited")

	if err := n.Status(t.Context()); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "plugin two: STATUS: limited") {
		t.Errorf("got %v", err)
	}
	n.configure(t, `{`)

	if err := n.Status(t.Context()); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "10-net.conflist") {
		t.Errorf("got %v", err)
	}
	if info := n.Info().(Info); info.Error == "" || info.Network != nil {
		t.Errorf("info is %+v", info)
	}
}

func TestSweepDetachesWhatIsNotValid(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"id1", "id2", "id3"} {
		pod := web
		pod.ID = id
		if _, err := n.Attach(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}

	n.Calls()
	if err := n.Sweep(t.Context(), []string{"id2", "id9"}); err != nil {
		t.Fatal(err)
	}

	got := map[string]int{}
	for _, call := range n.Calls() {
		got[call.Command+" "+call.Env["CNI_CONTAINERID"]]++
	}
	if want := map[string]int{"DEL id1": 2, "DEL id3": 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("called %v", got)
	}
}

func TestGCAndCheckReachThePlugins(t *testing.T) {
	n := newNode(t)
	if _, err := n.Attach(t.Context(), web); err != nil {
		t.Fatal(err)
	}

	n.Calls()
	n.Fail("two", "CHECK", 100, "gone")
	if err := n.CheckPod(t.Context(), web.ID); err == nil || err.Error() != "check network: plugin two: CHECK: gone (code 100)" {
		t.Errorf("check: %v", err)
	}

	// Others may have pods in networks of the same name.
	for _, sole := range []bool{false, true} {
		if _, err := n.Collect(t.Context(), sole); err != nil {
			t.Errorf("collect: %v", err)
		}
	}
	calls := n.Calls()
	var got []string
	for _, call := range calls {
		got = append(got, call.Plugin+" "+call.Command)
	}
	if !slices.Equal(got, []string{"one CHECK", "two CHECK", "one GC", "two GC"}) {
		t.Fatalf("called %v", got)
	}
	want := []any{map[string]any{"containerID": web.ID, "ifname": "eth0"}}
	if valid := calls[2].Conf["cni.dev/valid-attachments"]; !reflect.DeepEqual(valid, want) {
		t.Errorf("valid are %v", valid)
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	n := newNode(t)
	var pods sync.WaitGroup
	for i := range 20 {
		pods.Go(func() {
			pod := web
			pod.ID = fmt.Sprintf("id%d", i)
			if _, err := n.Attach(t.Context(), pod); err != nil {
				t.Error(err)
			}
			if err := n.Detach(t.Context(), pod); err != nil {
				t.Error(err)
			}
		})
	}
	pods.Wait()

	if got := len(n.Calls()); got != 80 {
		t.Errorf("%d calls", got)
	}
}

func TestCloseWaitsForCalls(t *testing.T) {
	n := newNode(t)
	n.Hang("one", "ADD")
	ctx, cancel := context.WithCancel(t.Context())
	attached := make(chan error, 1)
	go func() {
		_, err := n.Attach(ctx, web)
		attached <- err
	}()

	for len(n.Summary()) == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	closed := make(chan struct{})
	go func() {
		n.Close()
		close(closed)
	}()

	select {
	case <-closed:
		t.Error("Close did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	n.Heal("one", "ADD")
	<-closed

	if err := <-attached; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := n.Attach(t.Context(), web); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}
