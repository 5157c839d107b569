package cni

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"crisp/network/cni/cnitest"
)

const chain = `{"cniVersion":"1.1.0","name":"net","plugins":[
	{"type":"one","capabilities":{"portMappings":true}},
	{"type":"two","capabilities":{"mac":true,"ips":false}},
	{"type":"three"}]}`

// world is a client with plugins and a configuration of its own.
type world struct {
	*cnitest.Plugins
	client *Client
	conf   *Config
	cache  string
}

func newWorld(t *testing.T, text string) *world {
	t.Helper()
	w := &world{Plugins: cnitest.New(t, "one", "two", "three"), cache: t.TempDir()}
	w.conf = config(t, text)
	w.restart(t)
	return w
}

// restart makes a new client with the memory of the last one.
func (w *world) restart(t *testing.T) {
	t.Helper()
	client, err := NewClient([]string{w.Dir}, w.cache, "eth0", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.client = client
}

// forgotten fails the test if anything is remembered of attachments.
func (w *world) forgotten(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"attachments", "results"} {
		entries, err := os.ReadDir(filepath.Join(w.cache, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, entry := range entries {
			t.Errorf("%s/%s is left", dir, entry.Name())
		}
	}
}

func config(t *testing.T, text string) *Config {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.conflist"), text)
	conf, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

var pod = Attachment{
	ID: "pod1", NetNS: "/some/netns",
	Args:         [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web"}},
	Capabilities: map[string]any{"portMappings": []any{"p"}, "mac": "m", "ips": "i"},
}

func (w *world) add(t *testing.T) {
	t.Helper()
	if _, err := w.client.Add(t.Context(), w.conf, pod); err != nil {
		t.Fatal(err)
	}
}

func TestAddAndDelCallEveryPlugin(t *testing.T) {
	w := newWorld(t, chain)
	result, err := w.client.Add(t.Context(), w.conf, pod)
	if err != nil {
		t.Fatal(err)
	}

	if len(result.IPs) != 2 || result.IPs[0].Address.String() != "10.1.2.3/24" {
		t.Errorf("result is %+v", result)
	}
	adds := w.Calls()
	if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
		t.Fatal(err)
	}

	dels := w.Calls()
	w.forgotten(t)

	if len(adds) != 3 || len(dels) != 3 {
		t.Fatalf("%d calls to add, %d to delete", len(adds), len(dels))
	}
	slices.Reverse(dels)

	for i, name := range []string{"one", "two", "three"} {
		add, del := adds[i], dels[i]
		if add.Plugin != name || del.Plugin != name {
			t.Errorf("call %d to %s and %s, not %s", i, add.Plugin, del.Plugin, name)
		}

		want := map[string]string{
			"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "pod1", "CNI_NETNS": "/some/netns", "CNI_IFNAME": "eth0",
			"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web", "CNI_PATH": w.Dir,
		}

		if !reflect.DeepEqual(add.Env, want) {
			t.Errorf("%s ADD with %v", name, add.Env)
		}
		want["CNI_COMMAND"] = "DEL"

		if !reflect.DeepEqual(del.Env, want) {
			t.Errorf("%s DEL with %v", name, del.Env)
		}
		if !add.Locked || del.Locked {
			t.Errorf("%s held a lock in ADD: %t, in DEL: %t", name, add.Locked, del.Locked)
		}
		if (add.Conf["prevResult"] != nil) != (i > 0) {
			t.Errorf("%s ADD with previous result %v", name, add.Conf["prevResult"])
		}
		if del.Conf["prevResult"] == nil {
			t.Errorf("%s DEL without the result of the ADD", name)
		}

		for _, conf := range []map[string]any{add.Conf, del.Conf} {
			if conf["name"] != "net" || conf["cniVersion"] != "1.1.0" {
				t.Errorf("%s called with %v", name, conf)
			}
			if !reflect.DeepEqual(conf["runtimeConfig"], declared[name]) {
				t.Errorf("%s called with arguments %v, not %v", name, conf["runtimeConfig"], declared[name])
			}
		}
	}
}

// declared are the arguments that each plugin of the chain asks for.
var declared = map[string]any{
	"one": map[string]any{"portMappings": []any{"p"}},
	"two": map[string]any{"mac": "m"},
}

func TestAddFailingIsTakenBack(t *testing.T) {
	w := newWorld(t, chain)
	w.Fail("two", "ADD", 11, "try later")
	_, err := w.client.Add(t.Context(), w.conf, pod)
	var answer *PluginError
	if !errors.As(err, &answer) || answer.Plugin != "two" || answer.Command != "ADD" || answer.Code != 11 || answer.Msg != "try later" {
		t.Fatalf("got %v", err)
	}
	want := []string{"one ADD", "two ADD", "three DEL", "two DEL", "one DEL"}
	if got := w.Summary(); !slices.Equal(got, want) {
		t.Errorf("called %v", got)
	}
	w.forgotten(t)
}

func TestAddMissingPluginIsTakenBack(t *testing.T) {
	w := newWorld(t, chain)
	w.Remove("two")
	_, err := w.client.Add(t.Context(), w.conf, pod)
	if err == nil || !strings.Contains(err.Error(), "plugin two") {
		t.Fatalf("got %v", err)
	}

	want := []string{"one ADD", "three DEL", "one DEL"}
	if got := w.Summary(); !slices.Equal(got, want) {
		t.Errorf("called %v", got)
	}

	// DEL of the missing plugin is still owed.
	w.Install("two")
	w.restart(t)
	if err := w.client.Del(t.Context(), nil, pod); err != nil {
		t.Fatal(err)
	}

	want = []string{"three DEL", "two DEL", "one DEL"}
	if got := w.Summary(); !slices.Equal(got, want) {
		t.Errorf("called %v", got)
	}
	w.forgotten(t)
}

// hangAndCancel lets the second plugin hang in ADD, cancels the call, and
// returns what was called until Add has returned.
func hangAndCancel(t *testing.T, w *world, afterwards func()) ([]string, error) {
	t.Helper()
	w.Hang("two", "ADD")
	ctx, cancel := context.WithCancel(t.Context())
	added := make(chan error, 1)
	go func() {
		_, err := w.client.Add(ctx, w.conf, pod)
		added <- err
	}()

	var called []string
	for len(called) < 2 {
		time.Sleep(time.Millisecond)
		called = append(called, w.Summary()...)
	}
	cancel()
	afterwards()
	err := <-added

	return append(called, w.Summary()...), err
}

func TestAddCancelledIsTakenBack(t *testing.T) {
	w := newWorld(t, chain)
	w.client.runner.grace = 10 * time.Millisecond
	called, err := hangAndCancel(t, w, func() {})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "plugin two: ADD") {
		t.Errorf("got %v", err)
	}
	if want := []string{"one ADD", "two ADD", "three DEL", "two DEL", "one DEL"}; !slices.Equal(called, want) {
		t.Errorf("called %v", called)
	}
	w.forgotten(t)
}

func TestAddCancelledLetsThePluginFinish(t *testing.T) {
	w := newWorld(t, chain)
	called, err := hangAndCancel(t, w, func() { w.Heal("two", "ADD") })
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "plugin three: ADD") {
		t.Errorf("got %v", err)
	}
	if want := []string{"one ADD", "two ADD", "three DEL", "two DEL", "one DEL"}; !slices.Equal(called, want) {
		t.Errorf("called %v", called)
	}
	w.forgotten(t)
}

// A daemon that was killed during an ADD leaves a plugin that goes on.
func TestDelWaitsForAnOrphanedAdd(t *testing.T) {
	w := newWorld(t, chain)
	if err := w.client.records.save(&record{Version: recordVersion, ID: "pod1", IfName: "eth0", Config: w.conf.Bytes()}); err != nil {
		t.Fatal(err)
	}

	lock, err := w.client.records.lock("pod1")
	if err != nil {
		t.Fatal(err)
	}

	orphan := exec.CommandContext(t.Context(), "sleep", "1000")
	orphan.ExtraFiles = []*os.File{lock}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	lock.Close()

	w.restart(t)
	deleted := make(chan error, 1)
	go func() { deleted <- w.client.Del(t.Context(), w.conf, pod) }()
	select {
	case err := <-deleted:
		t.Errorf("DEL did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}

	orphan.Process.Kill()
	orphan.Wait()
	if err := <-deleted; err != nil {
		t.Error(err)
	}

	// Something that stays must not hold a DEL up for ever.
	if err := w.client.records.save(&record{Version: recordVersion, ID: "pod1", IfName: "eth0", Config: w.conf.Bytes()}); err != nil {
		t.Fatal(err)
	}

	lock, err = w.client.records.lock("pod1")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()

	w.client.runner.grace = 10 * time.Millisecond
	if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
		t.Error(err)
	}
}

func TestStatusDoesNotWaitForAHangingPlugin(t *testing.T) {
	w := newWorld(t, chain)
	w.Hang("two", "STATUS")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := w.client.Status(ctx, w.conf); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > killGrace/2 {
		t.Errorf("took %v", took)
	}
}

func TestDelGoesOnPastFailures(t *testing.T) {
	w := newWorld(t, chain)
	w.add(t)
	w.Calls()
	w.Fail("three", "DEL", 7, "cannot")
	w.Remove("two")

	err := w.client.Del(t.Context(), w.conf, pod)
	if err == nil || !strings.Contains(err.Error(), "plugin three: DEL: cannot (code 7)") || !strings.Contains(err.Error(), "plugin two") {
		t.Errorf("got %v", err)
	}

	if got := w.Summary(); !slices.Equal(got, []string{"three DEL", "one DEL"}) {
		t.Errorf("called %v", got)
	}

	w.Heal("three", "DEL")
	w.Install("two")
	w.restart(t)
	if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
		t.Fatal(err)
	}

	calls := w.Calls()
	if len(calls) != 3 {
		t.Fatalf("called %v", calls)
	}

	for _, call := range calls {
		if call.Conf["prevResult"] == nil {
			t.Errorf("%s got no previous result when asked again", call.Plugin)
		}
	}
	w.forgotten(t)
}

func TestDelUsesTheConfigurationOfAdd(t *testing.T) {
	other := config(t, `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"three"}]}`)
	for name, current := range map[string]*Config{"changed": other, "gone": nil} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, chain)
			w.add(t)
			w.Calls()
			w.restart(t)
			if err := w.client.Del(t.Context(), current, Attachment{ID: pod.ID}); err != nil {
				t.Fatal(err)
			}

			calls := w.Calls()
			if len(calls) != 3 {
				t.Fatalf("called %v", calls)
			}

			for _, call := range calls {
				if call.Conf["name"] != "net" || call.Env["CNI_NETNS"] != "" || call.Env["CNI_ARGS"] != "IgnoreUnknown=1;K8S_POD_NAME=web" {
					t.Errorf("%s called with %v and %v", call.Plugin, call.Conf, call.Env)
				}
				if !reflect.DeepEqual(call.Conf["runtimeConfig"], declared[call.Plugin]) {
					t.Errorf("%s called with arguments %v", call.Plugin, call.Conf["runtimeConfig"])
				}
			}
			w.forgotten(t)
		})
	}
}

func TestDelWithoutMemory(t *testing.T) {
	w := newWorld(t, chain)
	if err := w.client.Del(t.Context(), nil, pod); err != nil {
		t.Errorf("without any configuration: %v", err)
	}

	if got := w.Summary(); got != nil {
		t.Errorf("called %v", got)
	}

	// What a power cut may leave of a record.
	write(t, filepath.Join(w.cache, "attachments", "pod1.json"), "")
	for range 2 {
		if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
			t.Fatal(err)
		}
		calls := w.Calls()
		if len(calls) != 3 {
			t.Fatalf("called %v", calls)
		}

		for _, call := range calls {
			if call.Conf["prevResult"] != nil || call.Env["CNI_CONTAINERID"] != "pod1" {
				t.Errorf("%s called with %v and %v", call.Plugin, call.Conf, call.Env)
			}
		}
	}
	w.forgotten(t)
}

func TestOldVersionsGetNoPreviousResultOnDel(t *testing.T) {
	w := newWorld(t, strings.Replace(chain, "1.1.0", "0.3.1", 1))
	w.add(t)
	w.Calls()
	if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
		t.Fatal(err)
	}
	for _, call := range w.Calls() {
		if call.Conf["prevResult"] != nil {
			t.Errorf("%s got %v", call.Plugin, call.Conf["prevResult"])
		}
	}
	w.forgotten(t)
}

func TestStatus(t *testing.T) {
	w := newWorld(t, chain)
	if err := w.client.Status(t.Context(), w.conf); err != nil {
		t.Errorf("healthy: %v", err)
	}

	w.Fail("two", "STATUS", 50, "no uplink")
	err := w.client.Status(t.Context(), w.conf)
	if err == nil || err.Error() != "plugin two: STATUS: no uplink (code 50)" {
		t.Errorf("got %v", err)
	}

	w.Remove("two")
	if err := w.client.Status(t.Context(), w.conf); err == nil || !strings.Contains(err.Error(), "plugin two") {
		t.Errorf("missing plugin: %v", err)
	}

	w.Calls()
	old := config(t, strings.Replace(strings.Replace(chain, "1.1.0", "1.0.0", 1), `"two"`, `"three"`, 1))
	if err := w.client.Status(t.Context(), old); err != nil {
		t.Error(err)
	}

	if got := w.Summary(); got != nil {
		t.Errorf("called %v for a version without STATUS", got)
	}
}

func TestCheck(t *testing.T) {
	w := newWorld(t, chain)
	if err := w.client.Check(t.Context(), "pod1"); err != nil {
		t.Errorf("unknown pod: %v", err)
	}

	w.add(t)
	w.Calls()
	w.Fail("two", "CHECK", 100, "address is gone")
	err := w.client.Check(t.Context(), "pod1")
	if err == nil || err.Error() != "plugin two: CHECK: address is gone (code 100)" {
		t.Errorf("got %v", err)
	}

	if got := w.Summary(); !slices.Equal(got, []string{"one CHECK", "two CHECK"}) {
		t.Errorf("called %v", got)
	}
}

func TestGC(t *testing.T) {
	w := newWorld(t, chain)
	if err := w.client.GC(t.Context(), w.conf, []string{"pod7"}, []types.GCAttachment{{ContainerID: "other", IfName: "net1"}}); err != nil {
		t.Fatal(err)
	}

	calls := w.Calls()
	if len(calls) != 3 {
		t.Fatalf("called %v", calls)
	}

	want := []any{map[string]any{"containerID": "other", "ifname": "net1"}, map[string]any{"containerID": "pod7", "ifname": "eth0"}}
	for _, call := range calls {
		if call.Command != "GC" || !reflect.DeepEqual(call.Conf["cni.dev/valid-attachments"], want) {
			t.Errorf("%s %s with %v", call.Plugin, call.Command, call.Conf)
		}
	}
}

func TestHostileAnswers(t *testing.T) {
	huge, err := json.Marshal(strings.Repeat("x", maxStdout))
	if err != nil {
		t.Fatal(err)
	}

	for name, answer := range map[string]string{
		"no json": "hello",
		"null":    "null",
		"huge":    string(huge),
		"version": `{"cniVersion":"9.9.9"}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, chain)
			w.Answer("three", answer)
			result, err := w.client.Add(t.Context(), w.conf, pod)
			if err == nil && len(result.IPs) > 0 {
				t.Errorf("made %+v of it", result)
			}
			if err != nil {
				w.forgotten(t)
			}
		})
	}
}

func TestBadIDsReachNoFile(t *testing.T) {
	w := newWorld(t, chain)
	for _, id := range []string{"", "../x", "a/b", "."} {
		if _, err := w.client.Add(t.Context(), w.conf, Attachment{ID: id}); err == nil {
			t.Errorf("Add took %q", id)
		}
		if err := w.client.Del(t.Context(), w.conf, Attachment{ID: id}); err == nil {
			t.Errorf("Del took %q", id)
		}
	}
	if got := w.Summary(); got != nil {
		t.Errorf("called %v", got)
	}
}

func TestAttachedListsWhatIsLeft(t *testing.T) {
	w := newWorld(t, chain)
	w.add(t)
	write(t, filepath.Join(w.cache, "attachments", ".durable-123"), "torn")
	w.restart(t)

	ids, err := w.client.Attached()
	if err != nil || !slices.Equal(ids, []string{"pod1"}) {
		t.Errorf("got %v, %v", ids, err)
	}

	if got := w.client.NetNS("pod1"); got != "/some/netns" {
		t.Errorf("NetNS is %q", got)
	}
	if _, err := os.Stat(filepath.Join(w.cache, "attachments", ".durable-123")); err == nil {
		t.Error("an interrupted write was not swept")
	}
}

// TestWhatAttachedDetaches begins and ceases to serve a plugin type while a pod is
// attached: what attached it checks and detaches it.
func TestWhatAttachedDetaches(t *testing.T) {
	for _, first := range []bool{false, true} {
		w := newWorld(t, chain)
		var served []string
		serve := func(types ...string) {
			builtins := map[string]Builtin{}
			for _, kind := range []string{"one", "two", "three"} {
				builtins[kind] = Builtin{New: slices.Contains(types, kind), Call: func(_ context.Context, call BuiltinCall) ([]byte, error) {
					served = append(served, kind+" "+call.Command)
					return []byte(`{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}`), nil
				}}
			}
			client, err := NewClient([]string{w.Dir}, w.cache, "eth0", builtins, nil)
			if err != nil {
				t.Fatal(err)
			}
			w.client = client
		}

		before, after := []string(nil), []string{"one", "three"}
		if first {
			before, after = after, before
		}
		serve(before...)
		w.add(t)
		serve(after...)
		if err := w.client.Check(t.Context(), pod.ID); err != nil {
			t.Error(err)
		}
		if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
			t.Error(err)
		}
		var want []string
		if first {
			want = []string{"one ADD", "three ADD", "one CHECK", "three CHECK", "three DEL", "one DEL"}
		}
		if !slices.Equal(served, want) {
			t.Errorf("served %q, want %q", served, want)
		}
		w.forgotten(t)
	}
}

// TestServedByLaterRelease asks the program where a record says that a type was served, and
// it is not known how.
func TestServedByLaterRelease(t *testing.T) {
	w := newWorld(t, chain)
	rec := &record{Version: recordVersion, ID: pod.ID, IfName: "eth0", Config: w.conf.Bytes(), Served: []string{"two"}}
	if err := w.client.records.save(rec); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
		t.Error(err)
	}
	if got := w.Summary(); !slices.Equal(got, []string{"three DEL", "two DEL", "one DEL"}) {
		t.Errorf("called %q", got)
	}
	w.forgotten(t)
}
