package e2e

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// damages are kinds of corruption of a pod's record.
var damages = []struct {
	name string
	do   func(journal []byte) []byte // nil removes it
}{
	{"empty", func([]byte) []byte { return []byte{} }},
	{"truncated", func(j []byte) []byte { return j[:bytes.IndexByte(j, '\n')/2] }},
	{"with a bit flipped", func(j []byte) []byte { j[len(j)-20] ^= 4; return j }},
	{"not a journal", func([]byte) []byte { return []byte("\x00\x00\x00\x00") }},
	{"of a future version", future},
	{"missing", func([]byte) []byte { return nil }},
}

// future adds a record of a later version to a journal.
func future(journal []byte) []byte {
	lines := bytes.Split(journal, []byte("\n"))
	_, record, _ := bytes.Cut(lines[len(lines)-2], []byte(" "))
	record = bytes.Replace(record, []byte(`"Version":2,`), []byte(`"Version":99,`), 1)
	sum := crc32.Checksum(record, crc32.MakeTable(crc32.Castagnoli))
	return fmt.Appendf(journal, "%08x %s\n", sum, record)
}

// TestTornRecord kills the daemon in the middle of a write: the previous record
// is used.
func TestTornRecord(t *testing.T) {
	n := newNode(t, lab.Options{})
	p := n.pod(t)
	c := p.start(t)
	pid := c.pid(t)
	n.Kill()
	spoil(t, n.path("root", "pods", p.id, "record.jsonl"), func(journal []byte) []byte {
		torn := future(journal)
		return torn[:len(torn)-7]
	})

	n.begin(t)
	if got := c.pid(t); got != pid || p.status(t).State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the container was process %d and is %d, the pod is %v", pid, got, p.status(t).State)
	}
	p.remove(t)
}

// TestDamagedRecord corrupts the record of a pod: that pod is listed as not
// ready and can be removed with its resources, and no other is affected.
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
			spoil(t, n.path("root", "pods", bad.id, "record.jsonl"), d.do)
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

			// kubelet requires these to be valid.
			if st := bad.status(t); st.Metadata.GetName() == "" || st.Metadata.GetUid() == "" || st.CreatedAt == 0 {
				t.Errorf("the status of the bad pod is %v", st)
			}

			bad.remove(t)
			if left := names(n.path("root", "pods")); fmt.Sprint(left) != fmt.Sprint([]string{sound.id}) {
				t.Errorf("directories %q are left", left)
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
