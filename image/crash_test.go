package image_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
)

const crashEnv = "CRISP_TEST_CRASH_PULL"

// pullForEver is what the process does that TestKilledWhilePulling kills.
func pullForEver(t *testing.T, root string) {
	s, err := image.Open(image.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}

	ref := os.Getenv(crashEnv + "_REF")
	for i := 0; ; i++ {
		im := pull(t, s, ref)
		name := fmt.Sprint("c", i)
		if err := s.Prepare(name, im.ID, nil, nil); err != nil {
			t.Fatal(err)
		}

		if err := s.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		if err := s.Discard(name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledWhilePulling kills a process that pulls, uses and removes an image
// again and again, at all sorts of moments, and expects the next one to find
// nothing but whole things.
func TestKilledWhilePulling(t *testing.T) {
	testkit.Root(t)
	if root := os.Getenv(crashEnv); root != "" {
		pullForEver(t, root)
	}

	r := newRegistry(t)
	var layers []packed
	for i := range 5 {
		layers = append(layers, pack(t, text(fmt.Sprintf("f%d", i), random(100_000+i)), text("same", fmt.Sprint(i))))
	}

	r.push("app", "v1", ocispec.ImageConfig{}, layers...)
	root, ref := t.TempDir(), r.Host+"/app:v1"
	for round := range 25 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledWhilePulling$")
		cmd.Env = append(os.Environ(), crashEnv+"="+root, crashEnv+"_REF="+ref)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}

		time.Sleep(time.Duration(20+round*7) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait() // killed
		check(t, root, ref)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// check opens a directory that a killed process left and uses it.
func check(t *testing.T, root, ref string) {
	t.Helper()
	s := reopen(t, root)
	defer s.Close()
	for _, im := range s.List() {
		if err := s.Prepare("check", im.ID, nil, nil); err != nil {
			t.Errorf("image that was there: %v", err)
		}
	}

	im := pull(t, s, ref)
	if err := s.Prepare("check", im.ID, nil, nil); err != nil {
		t.Fatal(err)
	}

	m := mount(t, s, "check", nil)
	for i := range 5 {
		if got := read(t, m, fmt.Sprintf("f%d", i)); got != random(100_000+i) {
			t.Errorf("f%d has %d bytes of other content", i, len(got))
		}
	}

	if got := read(t, m, "same"); got != "4" {
		t.Errorf("same is %q", got)
	}
	m.Close()

	for _, id := range s.Containers() {
		if err := s.Discard(id); err != nil {
			t.Error(err)
		}
	}

	if err := s.Remove(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if u, _ := s.FsInfo(); u.UsedBytes != 0 {
		t.Errorf("used after removal: %+v", u)
	}

	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = reopen(t, root) // sweeps what the janitor did not get to
	waitFor(t, "orphans to be swept", func() bool { return len(orphans(root)) == 0 })
	s.Close()
}

// orphans lists files that belong to no image.
func orphans(root string) []string {
	var list []string
	for _, dir := range []string{"blobs", "parts", "layers", "tmp", "containers"} {
		filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error { // vanishes meanwhile
			if err == nil && !d.IsDir() {
				list = append(list, path)
			}
			return nil
		})
	}
	return list
}
