package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestImagesCheck corrupts an image on disk, and has it checked and repaired by
// the daemon and without one.
func TestImagesCheck(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.awaitSynced(t)
	n.wantCheck(t, true, "0 damaged, 0 of them repaired")
	layers, err := filepath.Glob(n.path("root", "image", "layers", "*", "fs", "bin", "busybox"))
	if err != nil || len(layers) == 0 {
		t.Fatalf("no layer has busybox: %v", err)
	}

	blob := indexBlob(t, n.path("root", "image", "blobs", "sha256", "*"))
	for what, down := range map[string]bool{"by the daemon": false, "without one": true} {
		t.Run(what, func(t *testing.T) {
			for _, path := range []string{blob, layers[0]} {
				spoilBit(t, path)
			}
			if down {
				n.Kill()
			}

			n.wantCheck(t, false, "blob sha256:"+filepath.Base(blob)+" ("+busybox+"): ", "layer sha256:", "2 damaged, 0 of them repaired")
			n.wantCheck(t, true, "; repaired", "2 damaged, 2 of them repaired")
			n.wantCheck(t, true, "0 damaged, 0 of them repaired")
			if down {
				n.begin(t)
			}
			n.pod(t).start(t, sh("exit 7")).wantEnd(t, 7, "Error")
		})
	}

	n.run(t, "in use", func(t *testing.T) {
		c := n.pod(t).start(t)
		spoilBit(t, layers[0])
		n.wantCheck(t, false, "not repaired: containers use it: remove ["+c.id+"]", "1 damaged, 0 of them repaired")
		c.remove(t)
		n.wantCheck(t, true, "1 damaged, 1 of them repaired")
	})

	if list := call(t, n.Images.ListImages, &runtimeapi.ListImagesRequest{}).Images; len(list) != 1 {
		t.Errorf("images %v are listed", list)
	}
}

// awaitSynced waits until everything is synced.
func (n *node) awaitSynced(t *testing.T) {
	t.Helper()
	eventually(t, "the image is on disk", func() bool {
		records, err := filepath.Glob(n.path("root", "image", "layers", "*", "layer.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range append(records, n.path("root", "image", "images.json")) {
			if data := slurp(r); data == "" || strings.Contains(data, "unsynced") {
				return false
			}
		}
		return true
	})
}

// wantCheck checks the images, with repair if everything must be fine
// afterwards.
func (n *node) wantCheck(t *testing.T, well bool, says ...string) {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	crisp, err := cache.Crisp()
	if err != nil {
		t.Fatal(err)
	}

	args := []string{"images", "check", "--config", n.path("config.toml"), "--root", n.path("root"), "--state", n.path("state"), "--registry-config-dir", n.path("certs.d")}
	if well || strings.HasPrefix(says[0], "not repaired") {
		args = append(args, "--repair")
	}

	out, err := exec.CommandContext(t.Context(), crisp, args...).CombinedOutput()
	if (err == nil) != well {
		t.Errorf("the check ends with %v: %s", err, out)
	}

	for _, want := range says {
		if !strings.Contains(string(out), want) {
			t.Errorf("the check does not say %q, but %s", want, out)
		}
	}
}

// spoilBit flips a bit of a file.
func spoilBit(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}

	data := []byte(slurp(path))
	data[len(data)/2] ^= 1
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// indexBlob returns the blob of an image's index. If one of the others is
// corrupt, the expected layers, or their content, are unknown.
func indexBlob(t *testing.T, pattern string) string {
	t.Helper()
	blobs, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		if data, err := os.ReadFile(blob); err == nil && bytes.Contains(data, []byte(`"manifests"`)) {
			return blob
		}
	}
	t.Fatalf("none of %d blobs is an index", len(blobs))
	return ""
}
