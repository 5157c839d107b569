package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// pullHost stands in image names for the registry with the images to pull.
const pullHost = "bench.test"

// pullImages is a registry with images that are pulled for their size.
type pullImages struct {
	registry *lab.Registry
}

// newPullImages serves the images, and makes them first when cache, which
// outlives the run, does not have them.
func newPullImages(ctx context.Context, l *lab.Lab, cache string) (*pullImages, error) {
	found, err := lab.Find()
	if err != nil {
		return nil, err
	}
	binary, err := found.Tool("registry")
	if err != nil {
		return nil, err
	}
	storage := filepath.Join(cache, "registry")
	if _, err := os.Stat(storage); err != nil {
		if err := makeImages(ctx, binary, cache, storage); err != nil {
			return nil, fmt.Errorf("make images to pull: %w", err)
		}
	}
	work, certs := filepath.Join(l.Dir, "bench-registry"), filepath.Join(l.Dir, "certs.d", pullHost)
	if err := errors.Join(os.MkdirAll(work, 0o755), os.MkdirAll(certs, 0o755)); err != nil {
		return nil, err
	}
	registry, err := lab.StartRegistry(ctx, lab.RegistryOptions{Binary: binary, Storage: storage, Work: work})
	if err != nil {
		return nil, err
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registry.Addr)
	if err := os.WriteFile(filepath.Join(certs, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		return nil, errors.Join(err, registry.Close())
	}
	return &pullImages{registry}, nil
}

// makeImages puts the images into a storage that is there when it is whole.
func makeImages(ctx context.Context, binary, work, storage string) (err error) {
	fresh := storage + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return err
	}
	registry, err := lab.StartRegistry(ctx, lab.RegistryOptions{Binary: binary, Storage: fresh, Work: work, Writable: true})
	if err != nil {
		return err
	}
	for _, k := range kinds {
		fmt.Println("make an image:", k.text)
		if err := k.push(ctx, registry.Addr); err != nil {
			return errors.Join(err, registry.Close())
		}
	}
	return errors.Join(registry.Close(), os.Rename(fresh, storage))
}

// pull measures pulls of images of which the runtime has nothing.
func (b *bench) pull(ctx context.Context, t *target, round int) error {
	if b.pulls == nil {
		return nil
	}
	c := b.client(t, b.recorder("pull", t.name, round, 0))
	for _, k := range kinds {
		image := &runtimeapi.ImageSpec{Image: pullHost + "/" + k.name + ":latest"}
		unix.Sync() // what was written before is not this pull's to write
		err := c.timed(ctx, k.text, func(ctx context.Context) error {
			_, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image})
			return err
		})
		if err != nil {
			return err
		}
		if _, err := c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
			return fmt.Errorf("%s: RemoveImage: %w", t.name, err)
		}
	}
	return nil
}
