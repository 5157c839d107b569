package image_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/test/testkit"
)

const pointEnv = "CRISP_TEST_POINT_PULL"

// pullWithPoints pulls an image into root with f called at every point, until
// all of it is on disk.
func pullWithPoints(t *testing.T, root, ref string, f func(string) error) error {
	t.Helper()
	opts := image.Options{Root: root, Choices: image.Choices{MaxConcurrentDownloads: 1}}
	image.SetFailpoint(&opts, f)
	s, err := image.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(t.Context(), ref, nil)
	return errors.Join(err, s.Close()) // which syncs
}

// points lists the points that a pull passes, each as often as it does.
func points(t *testing.T, ref string) []string {
	t.Helper()
	var mu sync.Mutex
	var list []string
	err := pullWithPoints(t, t.TempDir(), ref, func(effect string) error {
		mu.Lock()
		defer mu.Unlock()
		list = append(list, effect)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	for _, want := range []string{"unpack", "publish blob", "publish layer", "store document", "record image", "sync", "mark layer", "mark images", "sync records"} {
		for _, when := range []string{"before ", "after "} {
			if !slices.Contains(list, when+want) {
				t.Errorf("no point %s%s in %q", when, want, list)
			}
		}
	}

	return list
}

func pushFive(t *testing.T, r *testRegistry) string {
	var layers []packed
	for i := range 5 {
		layers = append(layers, pack(t, text(fmt.Sprintf("f%d", i), random(100_000+i)), text("same", fmt.Sprint(i))))
	}
	r.push("app", "v1", ocispec.ImageConfig{}, layers...)
	return r.Host + "/app:v1"
}

// TestKilledAtEveryPoint kills a process at each point of a pull and of
// bringing it to the disk. The next one must find whole things only, fetch
// nothing twice that was published, and leave nothing behind.
func TestKilledAtEveryPoint(t *testing.T) {
	testkit.Root(t)
	if root := os.Getenv(pointEnv); root != "" {
		nth, err := strconv.Atoi(os.Getenv(pointEnv + "_NTH"))
		if err != nil {
			t.Fatal(err)
		}

		var mu sync.Mutex
		_ = pullWithPoints(t, root, os.Getenv(pointEnv+"_REF"), func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if nth--; nth < 0 {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL) // cannot fail
				select {}
			}
			return nil
		})
		t.Fatal("still alive")
	}

	r := newRegistry(t)
	ref := pushFive(t, r)
	all := points(t, ref)
	for nth, point := range all {
		root := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledAtEveryPoint$")
		cmd.Env = append(os.Environ(), pointEnv+"="+root, pointEnv+"_REF="+ref, pointEnv+"_NTH="+strconv.Itoa(nth))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: the process was not killed: %v\n%s", point, err, out)
		}

		check(t, root, ref)
		if t.Failed() {
			t.Fatalf("killed at point %d of %d, %s", nth, len(all), point)
		}
	}
}

// TestErrorAtEveryPoint makes each point of a pull fail. The error must reach
// the caller, nothing half-made may stay, and the same pull must succeed then.
func TestErrorAtEveryPoint(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	ref := pushFive(t, r)
	ordered := errors.New("ordered failure")
	all := points(t, ref)
	for nth, point := range all {
		root := t.TempDir()
		left := nth
		var mu sync.Mutex
		err := pullWithPoints(t, root, ref, func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == -1 {
				return ordered
			}
			return nil
		})

		if !errors.Is(err, ordered) {
			t.Errorf("%s: error %v, want the one ordered", point, err)
		}
		check(t, root, ref)
		if t.Failed() {
			t.Fatalf("error at point %d of %d, %s", nth, len(all), point)
		}
	}
}

// crash copies what a process that is killed now, with the machine, would
// leave if everything had reached the disk.
func crash(t *testing.T, root string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("cp", "-a", root, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	return to
}

// TestPowerCut damages what a pull wrote and is not known to be on disk, as a
// power cut would, and expects exactly that to be fetched again.
func TestPowerCut(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	ref := pushFive(t, r)
	boot := func(id string) func(*image.Options) {
		return func(o *image.Options) { o.BootID, o.SyncDelay = id, 1<<62 }
	}

	live := t.TempDir()
	s := open(t, live, boot("first"))
	im := pull(t, s, ref)
	waitTidy(t, live)

	blobs, err := filepath.Glob(filepath.Join(live, "blobs/sha256/*"))
	if err != nil || len(blobs) != 7 {
		t.Fatalf("%d blobs, %v", len(blobs), err)
	}

	var big []string
	for _, b := range blobs {
		if st, err := os.Stat(b); err == nil && st.Size() > 10_000 {
			big = append(big, filepath.Base(b))
		}
	}

	for _, c := range []struct {
		name   string
		damage func(root string) error
		blobs  int // to be fetched again
	}{
		{"nothing", func(string) error { return nil }, 0},
		{"a blob with other bytes", func(root string) error { return flip(filepath.Join(root, "blobs/sha256", big[1])) }, 1},
		{"a blob cut short", func(root string) error { return os.Truncate(filepath.Join(root, "blobs/sha256", big[2]), 5000) }, 1},
		{"two empty blobs", func(root string) error {
			return errors.Join(os.Truncate(filepath.Join(root, "blobs/sha256", big[0]), 0), os.Truncate(filepath.Join(root, "blobs/sha256", big[4]), 0))
		}, 2},
		{"a file of a layer empty", func(root string) error {
			return os.Truncate(filepath.Join(root, "layers", im.ChainIDs[3].Encoded(), "fs/f3"), 0)
		}, 0},
		{"record of a layer empty", func(root string) error {
			return os.Truncate(filepath.Join(root, "layers", im.ChainIDs[3].Encoded(), "layer.json"), 0)
		}, 0},
		{"record of images empty", func(root string) error {
			return os.Truncate(filepath.Join(root, "images.recent.json"), 0)
		}, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := crash(t, live)
			if err := c.damage(root); err != nil {
				t.Fatal(err)
			}

			s := open(t, root, boot("second"))
			if _, err := s.Get(ref); !errors.Is(err, image.ErrNotFound) {
				t.Errorf("an image that may be torn: %v, want %v", err, image.ErrNotFound)
			}

			before := r.count("GET", "/blobs/")
			pull(t, s, ref)
			if n := r.count("GET", "/blobs/") - before; n != c.blobs {
				t.Errorf("%d blobs fetched, want %d", n, c.blobs)
			}

			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			check(t, root, ref)
		})
	}

	// The same boot trusts it, and an orderly end settles it.
	root := crash(t, live)
	same := open(t, root, boot("first"))
	if _, err := same.Get(ref); err != nil {
		t.Errorf("in the same boot: %v", err)
	}

	if err := same.Close(); err != nil {
		t.Fatal(err)
	}
	next := open(t, root, boot("third"))
	if _, err := next.Get(ref); err != nil {
		t.Errorf("after an orderly end and a reboot: %v", err)
	}
}

func flip(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	data[len(data)/2] ^= 1
	return os.WriteFile(path, data, 0o600)
}
