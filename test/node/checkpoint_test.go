//go:build node

package node

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestCheckpoint has kubelet checkpoint a container, by its own interface.
func TestCheckpoint(t *testing.T) {
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	criu, err := cache.CRIU()
	if err != nil {
		testkit.Skip(t, "criu", err.Error())
	}
	w := newWorldOn(t, lab.Options{Config: fmt.Sprintf("criu_path = %q", criu)}, nil, nil)
	t.Run("ready", w.ready)

	s := w.space(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
	terminationGracePeriodSeconds: 1
	containers:
	- {name: main, image: BUSYBOX, command: [sh, -c, "echo kept >/root/file; sleep 1000"]}
`)
	s.waitReady("web")
	before := s.get("pod/web", "{.status.containerStatuses[0].containerID}")

	var made struct{ Items []string }
	answer := s.cluster("create", "--raw", "/api/v1/nodes/"+s.node.Name+"/proxy/checkpoint/"+s.name+"/web/main", "-f", "/dev/null")
	if err := json.Unmarshal([]byte(answer), &made); err != nil || len(made.Items) != 1 {
		t.Fatalf("kubelet says %q (%v)", answer, err)
	}
	f, err := os.Open(made.Items[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	files := testkit.Entries(t, f)
	for _, want := range []string{"checkpoint/inventory.img", "config.dump", "spec.dump", "rootfs-diff.tar"} {
		if _, ok := files[want]; !ok {
			t.Errorf("%s has no %s, but %q", made.Items[0], want, slices.Sorted(maps.Keys(files)))
		}
	}
	if got := s.kubectl("exec", "web", "--", "cat", "/root/file"); got != "kept\n" {
		t.Errorf("afterwards the container's file has %q", got)
	}
	if got := s.get("pod/web", "{.status.containerStatuses[0].containerID}"); got != before {
		t.Errorf("the container is %s, was %s", got, before)
	}
}
