package e2e

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// damages are what may become of a pod's record.
var damages = []struct {
	name string
	do   func(record []byte) []byte // nil removes it
}{
	{"empty", func([]byte) []byte { return []byte{} }},
	{"truncated", func(r []byte) []byte { return r[:len(r)/2] }},
	{"not JSON", func([]byte) []byte { return []byte("\x00\x00\x00\x00") }},
	{"of a future version", func(r []byte) []byte { return bytes.Replace(r, []byte(`"Version":1,`), []byte(`"Version":99,`), 1) }},
	{"missing", func([]byte) []byte { return nil }},
}

// TestDamagedRecord spoils the record of a pod: that pod is listed as not
// ready and can be removed with all it has, and no other is harmed.
func TestDamagedRecord(t *testing.T) {
	n := newNode(t, lab.Options{})
	for _, d := range damages {
		n.run(t, d.name, func(t *testing.T) {
			sound, bad := n.pod(t), n.pod(t, attempt(1), sharedPID)
			alive := sound.start(t)
			bad.start(t)
			bad.create(t, named("created"))
			pid := alive.pid(t)
			n.Kill()
			spoil(t, n.path("root", "pods", bad.id, "record.json"), d.do)
			n.begin(t)

			if got := alive.pid(t); got != pid || alive.sh(t, "echo well") != "well" {
				t.Errorf("the container of the sound pod was process %d and is %d", pid, got)
			}
			if got := sound.status(t).State; got != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("the sound pod is %v", got)
			}
			states := map[string]runtimeapi.PodSandboxState{}
			for _, p := range call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items {
				states[p.Id] = p.State
			}
			if got, ok := states[bad.id]; !ok || got != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("the bad pod is not listed as not ready, but %v", states)
			}
			// kubelet wants these to be valid.
			if st := bad.status(t); st.Metadata.GetName() == "" || st.Metadata.GetUid() == "" || st.CreatedAt == 0 {
				t.Errorf("the status of the bad pod is %v", st)
			}
			bad.remove(t)
			if left := names(n.path("root", "pods")); fmt.Sprint(left) != fmt.Sprint([]string{sound.id}) {
				t.Errorf("folders %q are left", left)
			}
		})
	}
}

func spoil(t *testing.T, path string, how func([]byte) []byte) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if data := how(old); data != nil {
		err = os.WriteFile(path, data, 0o600)
	} else {
		err = os.Remove(path)
	}
	if err != nil {
		t.Fatal(err)
	}
}
