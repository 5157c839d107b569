package image_test

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// TestCloseDoesNotWaitForTheDisk closes the service over a disk that never gets
// done, while it syncs by itself and without. What was pulled is here for the
// next one, counts as not synced, and is synced by it.
func TestCloseDoesNotWaitForTheDisk(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("f", random(100_000))))
	ref := r.Host + "/app:v1"
	for name, delay := range map[string]time.Duration{"while it syncs": time.Millisecond, "before": time.Hour} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			var syncing atomic.Bool
			s := open(t, root, func(o *image.Options) {
				o.SyncDelay = delay
				o.Sync = func(ctx context.Context, _ *os.File) error {
					syncing.Store(true)
					<-ctx.Done()
					return ctx.Err()
				}
			})

			pull(t, s, ref)
			if delay < time.Second {
				waitFor(t, "the sync to begin", syncing.Load)
			}

			began := time.Now()
			if err := s.Close(); err != nil {
				t.Error(err)
			}

			if took := time.Since(began); took > pace.Scale(4*time.Second) {
				t.Errorf("the end took %v", took)
			}
			if !syncing.Load() {
				t.Error("nothing was brought to the disk")
			}

			again := open(t, root, func(o *image.Options) { o.BootID = "another boot" })
			if _, err := again.Get(ref); err == nil {
				t.Error("in another boot what was never synced is trusted")
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAbandonedSyncIsMadeUpFor has the next service sync what the last one left.
func TestAbandonedSyncIsMadeUpFor(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("f", random(100_000))))
	ref := r.Host + "/app:v1"
	root := t.TempDir()
	s := open(t, root, func(o *image.Options) {
		o.Sync = func(ctx context.Context, _ *os.File) error { <-ctx.Done(); return ctx.Err() }
	})

	pull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	next := open(t, root)
	if _, err := next.Get(ref); err != nil {
		t.Errorf("in the same boot: %v", err)
	}

	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	later := open(t, root, func(o *image.Options) { o.BootID = "another boot" })
	if _, err := later.Get(ref); err != nil {
		t.Errorf("in another boot: %v", err)
	}
}
