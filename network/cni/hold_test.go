package cni

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// TestHold keeps an attachment while it is held, and finds none after that.
func TestHold(t *testing.T) {
	w := newWorld(t, chain)
	if _, ok := w.client.Hold(t.Context(), pod.ID); ok {
		t.Error("held an attachment that does not exist")
	}
	w.add(t)
	release, ok := w.client.Hold(t.Context(), pod.ID)
	if !ok {
		t.Fatal("an attachment cannot be held")
	}
	if _, ok := w.client.Hold(t.Context(), pod.ID); ok {
		t.Error("an attachment is held twice")
	}
	w.Calls()

	canceled, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.client.Del(canceled, w.conf, pod); err == nil {
		t.Error("detached while it is held")
	}
	deleted := make(chan error, 1)
	go func() { deleted <- w.client.Del(t.Context(), w.conf, pod) }()
	time.Sleep(50 * time.Millisecond)
	if calls := w.Calls(); len(calls) > 0 {
		t.Errorf("plugins are called while it is held: %+v", calls)
	}
	release()
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if _, ok := w.client.Hold(t.Context(), pod.ID); ok {
		t.Error("held an attachment that was detached")
	}
	w.forgotten(t)
}

// TestHoldOfOldVersion holds an attachment whose configuration's version passes no result
// to DEL, and tells a caller of it.
func TestHoldOfOldVersion(t *testing.T) {
	w := newWorld(t, strings.Replace(chain, "1.1.0", "0.3.1", 1))
	w.add(t)
	release, ok := w.client.Hold(t.Context(), pod.ID)
	if !ok {
		t.Fatal("an attachment cannot be held")
	}
	release()

	calls, err := w.client.Calls(pod.ID, "one", "CHECK")
	if err != nil || len(calls) != 1 || !strings.Contains(string(calls[0].Config), `"10.1.2.3/24"`) {
		t.Errorf("calls are %+v, %v", calls, err)
	}
	w.Calls()
	if err := w.client.Del(t.Context(), w.conf, pod); err != nil {
		t.Fatal(err)
	}
	for _, call := range w.Calls() {
		if call.Conf["prevResult"] != nil {
			t.Errorf("DEL of %s has a result", call.Plugin)
		}
	}
}

// TestHoldUnfinished does not hold an attachment of which no result is known: it is under
// way, or was interrupted.
func TestHoldUnfinished(t *testing.T) {
	w := newWorld(t, chain)
	rec := &record{Version: recordVersion, ID: pod.ID, IfName: "eth0", Config: w.conf.Bytes()}
	if err := w.client.records.save(rec); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.client.Hold(t.Context(), pod.ID); ok {
		t.Error("held")
	}
}

// TestCached lists what a runtime with the common directory has attached.
func TestCached(t *testing.T) {
	dir := t.TempDir()
	if got, err := Cached(dir); err != nil || len(got) > 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	held := types.GCAttachment{ContainerID: pod.ID, IfName: "eth0"}
	w := newWorld(t, chain)
	w.add(t)
	if got, err := Cached(w.cache); err != nil || !slices.Contains(got["net"], held) || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
	write(t, filepath.Join(w.cache, "results/torn"), "{")
	if got, err := Cached(w.cache); err != nil || !slices.Contains(got["net"], held) {
		t.Errorf("beside a torn file: %v, %v", got, err)
	}
}
