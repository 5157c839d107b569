// Command images builds the images that critest, the demo and, if Kubernetes
// was built, its tests pull, out of Debian packages and small programs, and leaves them in the storage of a
// registry in the checkout's .cache folder. It does nothing when they are
// there already.
package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"crisp/test/testkit/lab"
)

func main() {
	cache := flag.String("cache", ".cache", "the `folder` to build in")
	flag.Parse()
	dir, err := filepath.Abs(*cache)
	if err == nil {
		err = build(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// build makes the storage in a new folder and renames it into place, so that
// a storage that is there is whole.
func build(ctx context.Context, cache string) error {
	dir := filepath.Join(cache, "images")
	kube := findKubernetes(cache)
	stamp, err := stamp(kube)
	if err != nil {
		return err
	}
	stampFile, storage := filepath.Join(dir, "stamp"), filepath.Join(dir, "registry")
	if old, err := os.ReadFile(stampFile); err == nil && string(old) == stamp {
		return nil
	}
	fresh := filepath.Join(dir, "registry.new")
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return err
	}
	c, err := makeContents(ctx, dir)
	if err != nil {
		return err
	}
	if err := publishAll(ctx, c, kube, cache, fresh); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(stampFile), os.RemoveAll(storage), os.Rename(fresh, storage)); err != nil {
		return err
	}
	return os.WriteFile(stampFile, []byte(stamp), 0o644)
}

func publishAll(ctx context.Context, c *contents, kube kubernetes, cache, storage string) (err error) {
	registry, err := lab.StartRegistry(ctx, lab.RegistryOptions{
		Binary: filepath.Join(cache, "bin", "registry"), Storage: storage, Work: filepath.Dir(storage), Writable: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	recipes, err := c.recipes(ctx, kube)
	if err != nil {
		return err
	}
	for _, r := range recipes {
		fmt.Println("image", r.names[0])
		if err := publish(ctx, registry.Addr, r); err != nil {
			return err
		}
	}
	return nil
}

// sources are this program's: the images change when they do.
//
//go:embed *.go programs
var sources embed.FS

// stamp tells one state of the sources from another.
func stamp(kube kubernetes) (string, error) {
	programs, err := kube.stamp()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	err = fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := sources.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(content), content)
		return err
	})
	return runtime.GOARCH + " " + hex.EncodeToString(sum.Sum(nil)) + " " + programs, err
}
