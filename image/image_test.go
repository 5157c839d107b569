package image_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/image"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard()) // tests provoke thousands of warnings
	os.Exit(testkit.Main(m))
}

func random(n int) string {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	c.Read(b) // never fails
	return string(b)
}

func TestPullListRemove(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	_, id := r.push("app", "v1", ocispec.ImageConfig{User: "1000"}, pack(t, dir("etc"), text("etc/a", "1")), pack(t, text("etc/b", "2")))
	s := open(t, t.TempDir())
	im := pull(t, s, r.Host+"/app:v1")
	if im.ID != id || im.Config.Config.User != "1000" || im.Size == 0 {
		t.Errorf("image is %+v, want ID %s", im, id)
	}

	if want := []string{r.Host + "/app:v1"}; !slices.Equal(im.RepoTags, want) {
		t.Errorf("tags %v, want %v", im.RepoTags, want)
	}
	if want := []string{r.Host + "/app@" + im.Manifest.String()}; !slices.Equal(im.RepoDigests, want) {
		t.Errorf("digests %v, want %v", im.RepoDigests, want)
	}

	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{r.Host + "/app:v1", im.RepoDigests[0], r.Host + "/app:nope@" + im.Manifest.String(), id, hex, hex[:12], id[:20]} {
		if got, err := s.Get(ref); err != nil || got.ID != id {
			t.Errorf("get %q: %v, %v", ref, got.ID, err)
		}
	}

	for _, ref := range []string{"app", r.Host + "/app:v2", strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Get(ref); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("get %q: %v, want not found", ref, err)
		}
	}

	if l := s.List(); len(l) != 1 || l[0].ID != id {
		t.Errorf("list is %v", l)
	}
	if err := s.Remove(t.Context(), r.Host+"/app:v1"); err != nil {
		t.Fatal(err)
	}

	if l := s.List(); len(l) != 0 {
		t.Errorf("after removal, list is %v", l)
	}
	if err := s.Remove(t.Context(), r.Host+"/app:v1"); err != nil {
		t.Errorf("second removal: %v", err)
	}

	if fs, _ := s.FsInfo(); fs.UsedBytes != 0 || fs.InodesUsed != 0 {
		t.Errorf("after removal, used is %+v", fs)
	}
}

func TestTagsMove(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	shared := pack(t, text("shared", "x"))
	desc1, id1 := r.push("app", "latest", ocispec.ImageConfig{}, shared, pack(t, text("a", "1")))
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/app")
	r.push("app", "also", ocispec.ImageConfig{}, shared, pack(t, text("a", "1")))
	pull(t, s, r.Host+"/app:also")

	if im, _ := s.Get(id1); len(im.RepoTags) != 2 || len(im.RepoDigests) != 1 {
		t.Errorf("tags %v, digests %v, want two and one", im.RepoTags, im.RepoDigests)
	}
	_, id2 := r.push("app", "latest", ocispec.ImageConfig{}, shared, pack(t, text("a", "2")))
	if im := pull(t, s, r.Host+"/app"); im.ID != id2 {
		t.Errorf("pulled %s, want %s", im.ID, id2)
	}

	if im, _ := s.Get(id1); !slices.Equal(im.RepoTags, []string{r.Host + "/app:also"}) {
		t.Errorf("the old image has tags %v", im.RepoTags)
	}
	if err := s.Remove(t.Context(), r.Host+"/app:also"); err != nil {
		t.Fatal(err)
	}

	im := pull(t, s, r.Host+"/app@"+desc1.Digest.String())
	if im.ID != id1 || len(im.RepoTags) != 0 || len(im.RepoDigests) != 1 {
		t.Errorf("pulled by digest: %s with tags %v", im.ID, im.RepoTags)
	}
	if n := len(s.List()); n != 2 {
		t.Errorf("%d images, want 2", n)
	}
}

func TestRemoveTakesAllTags(t *testing.T) {
	testkit.Root(t)
	r1, r2 := newRegistry(t), newRegistry(t)
	l := pack(t, text("a", "1"))
	for i, r := range []*testRegistry{r1, r2} {
		r.push("app", "one", ocispec.ImageConfig{}, l)
		r.push("app", fmt.Sprint("two", i), ocispec.ImageConfig{}, l)
	}

	s := open(t, t.TempDir())
	pull(t, s, r1.Host+"/app:one")
	pull(t, s, r2.Host+"/app:one")
	pull(t, s, r2.Host+"/app:two1")
	if len(s.List()) != 1 || len(s.List()[0].RepoTags) != 3 {
		t.Fatalf("images %+v, want one with three tags", s.List())
	}

	if err := s.Remove(t.Context(), r2.Host+"/app:two1"); err != nil {
		t.Fatal(err)
	}
	if len(s.List()) != 0 {
		t.Errorf("left: %+v", s.List())
	}
}

func TestReopen(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	_, id := r.push("app", "v1", ocispec.ImageConfig{User: "7"}, pack(t, text("a", random(100_000))), pack(t, dir("d")))
	root := t.TempDir()
	s, err := image.Open(image.Options{Root: root, Choices: image.Choices{Pinned: []string{r.Host + "/a*"}}})
	if err != nil {
		t.Fatal(err)
	}

	before := pull(t, s, r.Host+"/app:v1")
	used, _ := s.FsInfo()
	if _, err := image.Open(image.Options{Root: root}); !errors.Is(err, image.ErrLocked) {
		t.Errorf("second open: %v, want %v", err, image.ErrLocked)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Leftovers of a killed process go, and so does content without an image.
	os.MkdirAll(filepath.Join(root, "tmp/layer-1/fs/x"), 0o700)
	os.WriteFile(filepath.Join(root, "tmp/blob-1"), []byte("x"), 0o600)
	os.WriteFile(filepath.Join(root, "blobs/sha256", strings.Repeat("0", 64)), []byte("x"), 0o600)
	os.MkdirAll(filepath.Join(root, "layers", strings.Repeat("0", 64), "fs"), 0o700)
	s = open(t, root, func(o *image.Options) { o.Pinned = []string{r.Host + "/a*"} })
	after, err := s.Get(id)
	if err != nil {
		t.Fatal(err)
	}

	if fmt.Sprintf("%+v", after) != fmt.Sprintf("%+v", before) {
		t.Errorf("after reopening:\n%+v\nbefore:\n%+v", after, before)
	}
	if !after.Pinned {
		t.Error("not pinned")
	}

	if u, _ := s.FsInfo(); u != used {
		t.Errorf("used %+v, before %+v", u, used)
	}
	waitFor(t, "the temporary directory to be empty", func() bool {
		left, _ := os.ReadDir(filepath.Join(root, "tmp"))
		return len(left) == 0
	})

	requests := r.count("GET")
	pull(t, s, r.Host+"/app:v1")
	if n := r.count("GET") - requests; n != 1 {
		t.Errorf("a pull of what is here took %d requests, want 1", n)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// TestDamage damages one thing at a time and expects a pull to fetch that alone.
func TestDamage(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	l1, l2 := pack(t, text("a", "1")), pack(t, text("b", "2"))
	_, id := r.push("app", "v1", ocispec.ImageConfig{}, l1, l2)
	root := t.TempDir()
	for _, c := range []struct {
		name   string
		damage func(im image.Image) error
		blobs  int // to be fetched again
	}{
		{"configuration truncated", func(im image.Image) error {
			return os.Truncate(filepath.Join(root, "blobs/sha256", im.ID[7:]), 10)
		}, 1},
		{"layer blob missing", func(image.Image) error {
			return os.Remove(filepath.Join(root, "blobs/sha256", digestHex(l1.data)))
		}, 1},
		{"layer blob empty", func(image.Image) error {
			return os.Truncate(filepath.Join(root, "blobs/sha256", digestHex(l1.data)), 0)
		}, 1},
		{"layer blob spoilt and layer missing", func(im image.Image) error {
			blob := filepath.Join(root, "blobs/sha256", digestHex(l1.data))
			if err := os.WriteFile(blob, []byte(strings.Repeat("x", len(l1.data))), 0o600); err != nil {
				return err
			}
			return os.RemoveAll(filepath.Join(root, "layers", im.ChainIDs[0].Encoded()))
		}, 1},
		{"unpacked layer without record", func(im image.Image) error {
			return os.Remove(filepath.Join(root, "layers", im.ChainIDs[1].Encoded(), "layer.json"))
		}, 0},
		{"unpacked layer missing", func(im image.Image) error {
			return os.RemoveAll(filepath.Join(root, "layers", im.ChainIDs[0].Encoded()))
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := reopen(t, root)
			defer s.Close()
			im := pull(t, s, r.Host+"/app:v1")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			if err := c.damage(im); err != nil {
				t.Fatal(err)
			}
			s = reopen(t, root)
			defer s.Close()

			if _, err := s.Get(id); !errors.Is(err, image.ErrNotFound) {
				t.Errorf("damaged image: %v", err)
			}
			blobs := r.count("GET", "/blobs/")
			pull(t, s, r.Host+"/app:v1")

			if n := r.count("GET", "/blobs/") - blobs; n != c.blobs {
				t.Errorf("%d blobs fetched, want %d", n, c.blobs)
			}
		})
	}
}

func reopen(t *testing.T, root string) *image.Service {
	t.Helper()
	s, err := image.Open(image.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUsageIsWhatDiskUsageSays(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	var files []file
	for i := range 200 {
		files = append(files, text(fmt.Sprintf("d%d/f%d", i%7, i), random(i*100)))
	}

	link := file{}
	link.Name, link.Linkname, link.Typeflag = "d1/hard", "d1/f1", '1'
	files = append(files, link, text("d1/f1", "again"), text("d2", "was a directory"))
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, files...), pack(t, text("x", random(1_000_000))))

	root := t.TempDir()
	s := open(t, root)
	pull(t, s, r.Host+"/app:v1")
	got, _ := s.FsInfo()
	bytes, inodes := diskUsage(t, filepath.Join(root, "blobs/sha256"), filepath.Join(root, "layers"))
	if d := float64(got.UsedBytes) / float64(bytes); d < 0.95 || d > 1.05 {
		t.Errorf("used bytes %d, du says %d", got.UsedBytes, bytes)
	}

	if d := float64(got.InodesUsed) / float64(inodes); d < 0.9 || d > 1.1 {
		t.Errorf("used inodes %d, du says %d", got.InodesUsed, inodes)
	}
}

func diskUsage(t *testing.T, dirs ...string) (bytes, inodes uint64) {
	t.Helper()
	seen := map[uint64]bool{}
	for _, d := range dirs {
		err := filepath.WalkDir(d, func(path string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			if err != nil || seen[st.Ino] {
				return err
			}

			seen[st.Ino] = true
			bytes += uint64(st.Blocks) * 512
			inodes++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	return bytes, inodes
}

func TestConcurrentPullsFetchOnce(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	var layers []packed
	for i := range 10 {
		layers = append(layers, pack(t, text(fmt.Sprint("f", i), random(50_000+i))))
	}

	layers = append(layers, layers[3], pack(t), pack(t)) // the same content again, higher up
	r.push("app", "v1", ocispec.ImageConfig{}, layers...)

	// Another image that shares the lower half.
	r.push("app", "v2", ocispec.ImageConfig{}, append(layers[:5:5], pack(t, text("other", "x")))...)
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			ref := fmt.Sprintf("%s/app:v%d", r.Host, i%2+1)
			if _, err := s.Pull(t.Context(), ref, nil); err != nil {
				t.Errorf("pull %s: %v", ref, err)
			}
		})
	}
	wg.Wait()

	for _, l := range layers {
		if n := r.count("GET", "/blobs/sha256:"+digestHex(l.data)); n != 1 {
			t.Errorf("a layer was fetched %d times", n)
		}
	}
}

func TestCancelledLeaderDoesNotFailFollowers(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("a", random(200_000))))
	r.push("app", "v2", ocispec.ImageConfig{User: "1"}, pack(t, text("a", random(200_000))))

	for _, follower := range []string{"v1", "v2"} {
		t.Run(follower, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			held, release := make(chan struct{}, 10), make(chan struct{})
			var once sync.Once
			r.onRequest(func(_ http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, "/blobs/") {
					held <- struct{}{}
					select {
					case <-release:
					case <-req.Context().Done():
					}
				}
				return false
			})

			defer once.Do(func() { close(release) })
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { _, err := s.Pull(ctx, r.Host+"/app:v1", nil); first <- err }()
			<-held // the configuration
			go func() { _, err := s.Pull(t.Context(), r.Host+"/app:"+follower, nil); second <- err }()

			if follower == "v2" {
				<-held // its own configuration
			}
			cancel()

			if err := <-first; !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled pull: %v", err)
			}
			once.Do(func() { close(release) })

			if err := <-second; err != nil {
				t.Errorf("follower: %v", err)
			}
		})
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	r := newRegistry(t)
	big := pack(t, text("a", random(3_000_000)))
	r.push("app", "v1", ocispec.ImageConfig{}, big, pack(t, text("b", "b")))

	root := t.TempDir()
	s := open(t, root)
	started := make(chan struct{}, 1)
	r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, digestHex(big.data)) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(big.data)))
		w.Write(big.data[:1_000_000])
		w.(http.Flusher).Flush()
		started <- struct{}{}
		<-req.Context().Done()

		return true
	})

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := s.Pull(ctx, r.Host+"/app:v1", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("pull: %v", err)
	}

	waitFor(t, "the temporary directory to be empty", func() bool {
		left, _ := os.ReadDir(filepath.Join(root, "tmp"))
		return len(left) == 0
	})
	r.onRequest(nil)
	pull(t, s, r.Host+"/app:v1")
}

// TestChoose changes registries and pinned images while the service runs.
func TestChoose(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	s := open(t, t.TempDir())
	was := pull(t, s, r.Host+"/app:1")

	dirs := t.TempDir()
	config := fmt.Sprintf("server = %q\n", "http://"+r.Host)
	if err := errors.Join(os.Mkdir(filepath.Join(dirs, "other.example"), 0o755), os.WriteFile(filepath.Join(dirs, "other.example", "hosts.toml"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.Choose(image.Choices{RegistryConfigDirs: []string{dirs}, Pinned: []string{"*/app:1"}})
	if im, err := s.Get(was.ID); err != nil || !im.Pinned || was.Pinned {
		t.Errorf("the image is %+v, %v", im, err)
	}
	if im := pull(t, s, "other.example/app:1"); im.ID != was.ID {
		t.Errorf("the other registry has %s", im.ID)
	}
	s.Choose(image.Choices{})
	if im, err := s.Get(was.ID); err != nil || im.Pinned {
		t.Errorf("the image is %+v, %v", im, err)
	}
}
