package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

const (
	// pullHost is the registry's host in the names of the images to pull.
	pullHost = "bench.test"
	// halfPresent is appended to the names of pulls.
	halfPresent = ", half of the layers present"
	// trafficPhase has the traffic from the registry during pulls.
	trafficPhase = "traffic"
)

// pullImages is a registry with images of various shapes to pull.
type pullImages struct {
	registry *lab.Registry
	log      *accessLog
}

// newPullImages serves the images from cache, which persists, and creates them
// first if they are not there in this size.
func newPullImages(ctx context.Context, l *lab.Lab, cache string, scale float64) (*pullImages, error) {
	found, err := lab.Find()
	if err != nil {
		return nil, err
	}

	binary, err := found.Tool("registry")
	if err != nil {
		return nil, err
	}

	storage := filepath.Join(cache, fmt.Sprintf("images-%g", scale))
	if _, err := os.Stat(storage); err != nil {
		if err := makeImages(ctx, binary, cache, storage, scale); err != nil {
			return nil, fmt.Errorf("create images to pull: %w", err)
		}
	}

	work, certs := filepath.Join(l.Dir, "bench-registry"), filepath.Join(l.Dir, "certs.d", pullHost)
	if err := errors.Join(os.MkdirAll(work, 0o755), os.MkdirAll(certs, 0o755)); err != nil {
		return nil, err
	}

	registry, err := lab.StartRegistry(ctx, lab.RegistryOptions{Binary: binary, Storage: storage, Work: work, AccessLog: true})
	if err != nil {
		return nil, err
	}

	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registry.Addr)
	if err := os.WriteFile(filepath.Join(certs, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		return nil, errors.Join(err, registry.Close())
	}
	return &pullImages{registry, &accessLog{path: filepath.Join(work, "registry.log")}}, nil
}

// makeImages creates the images in a new storage, which appears complete, by a
// rename.
func makeImages(ctx context.Context, binary, work, storage string, scale float64) (err error) {
	fresh := storage + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return err
	}

	registry, err := lab.StartRegistry(ctx, lab.RegistryOptions{Binary: binary, Storage: fresh, Work: work, Writable: true})
	if err != nil {
		return err
	}

	for _, k := range slices.Concat(kinds(scale), crowded(scale)) {
		fmt.Println("create image", k.name)
		err := k.push(ctx, registry.Addr)
		if next, ok := k.next(); err == nil && ok && k.text != "" {
			err = next.push(ctx, registry.Addr)
		}
		if err != nil {
			return errors.Join(err, registry.Close())
		}
	}

	return errors.Join(registry.Close(), os.Rename(fresh, storage))
}

// pull measures pulls of images of which the runtime has no layers or half of
// them, and of several at the same time.
func (b *bench) pull(ctx context.Context, t *target, round int) error {
	if b.pulls == nil {
		b.note("pull", "A runtime that the benchmark did not start does not know the registry.")
		return nil
	}

	c := b.client(t, b.recorder("pull", t.name, round, 0))
	for _, k := range kinds(b.opt.scale) {
		err := b.pullOne(ctx, c, round, k.text, k.name)
		images := []string{k.name}
		if next, ok := k.next(); err == nil && ok {
			images = append(images, next.name)
			err = b.pullOne(ctx, c, round, k.text+halfPresent, next.name)
		}
		if err = errors.Join(err, forget(ctx, c, images...)); err != nil {
			return err
		}
	}

	return b.pullMany(ctx, c, round)
}

// pullOne measures a pull and its traffic.
func (b *bench) pullOne(ctx context.Context, c *client, round int, what string, images ...string) error {
	unix.Sync() // so that this pull does not write back earlier data
	b.pulls.log.skip()
	err := c.timed(ctx, what, func(ctx context.Context) error {
		return together(len(images), len(images), func(i int) error {
			_, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: benchImage(images[i])})
			return err
		})
	})
	if err != nil {
		return err
	}

	asked, err := b.pulls.log.read()
	b.samples.add(Sample{trafficPhase, c.name, round, 0, what, float64(asked) / 1e6, "MB"})
	return err
}

// pullMany measures concurrent pulls, of images that share nothing and of a single
// image.
func (b *bench) pullMany(ctx context.Context, c *client, round int) error {
	var names []string
	for _, k := range crowded(b.opt.scale) {
		names = append(names, k.name)
	}

	size := crowded(b.opt.scale)[0].size * 4 >> 20
	for _, p := range []struct {
		what   string
		images []string
	}{
		{fmt.Sprintf("1 image of %d MB", size), names[:1]},
		{fmt.Sprintf("2 images of %d MB at once", size), names[:2]},
		{fmt.Sprintf("10 images of %d MB at once", size), names},
		{fmt.Sprintf("1 image of %d MB, by 2 at once", size), slices.Repeat(names[:1], 2)},
		{fmt.Sprintf("1 image of %d MB, by 10 at once", size), slices.Repeat(names[:1], 10)},
	} {
		err := b.pullOne(ctx, c, round, p.what, p.images...)
		if err = errors.Join(err, forget(ctx, c, names...)); err != nil {
			return err
		}
	}

	return nil
}

// forget removes images, some of which may not exist.
func forget(ctx context.Context, c *client, images ...string) error {
	var errs []error
	for _, name := range images {
		if _, err := c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: benchImage(name)}); err != nil {
			errs = append(errs, fmt.Errorf("%s: RemoveImage: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

func benchImage(name string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: pullHost + "/" + name + ":latest"}
}
