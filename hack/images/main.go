// Command images builds the images that critest, the demo and, if Kubernetes
// was built, its tests pull, from Debian packages and small programs, and
// writes them to the storage of a registry in the checkout's .cache directory.
// It does nothing if they already exist. With -only it builds one image, in a
// separate storage.
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
	"slices"
)

func main() {
	cache := flag.String("cache", ".cache", "the `directory` to build in")
	only := flag.String("only", "", "build nothing but the image of this `name`")
	storage := flag.String("storage", "images", "the `directory` of the cache that gets the storage")
	arch := flag.String("arch", runtime.GOARCH, "the `architecture` of the images")
	flag.Parse()
	dir, err := filepath.Abs(*cache)
	if err == nil {
		err = build(context.Background(), dir, *storage, *arch, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// build creates the storage in a new directory and renames it into place, so
// that an existing storage is complete.
func build(ctx context.Context, cache, name, arch, only string) error {
	dir := filepath.Join(cache, name)
	kube := findKubernetes(cache)
	if only != "" {
		kube = kubernetes{} // none of its images is requested
	}

	stamp, err := stamp(kube, arch, only)
	if err != nil {
		return err
	}

	stampFile, place := filepath.Join(dir, "stamp"), filepath.Join(dir, "registry")
	if old, err := os.ReadFile(stampFile); err == nil && string(old) == stamp {
		return nil
	}

	fresh := filepath.Join(dir, "registry.new")
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return err
	}

	c, err := openContents(filepath.Join(cache, "images"), arch)
	if err != nil {
		return err
	}

	if err := publishAll(ctx, c, kube, storage(fresh), only); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(stampFile), os.RemoveAll(place), os.Rename(fresh, place)); err != nil {
		return err
	}
	return os.WriteFile(stampFile, []byte(stamp), 0o644)
}

func publishAll(ctx context.Context, c *contents, kube kubernetes, to storage, only string) error {
	if err := c.packages.add(ctx, "busybox", "procps", "util-linux", "nginx"); err != nil {
		return err
	}
	recipes, err := c.recipes(ctx, kube)
	if err != nil {
		return err
	}

	if only != "" {
		recipes = slices.DeleteFunc(recipes, func(r recipe) bool { return !slices.Contains(r.names, only) })
	}
	if len(recipes) == 0 {
		return fmt.Errorf("build image %s: there is no recipe for it", only)
	}

	for _, r := range recipes {
		fmt.Println("image", r.names[0])
		if err := publish(to, r, c.arch); err != nil {
			return err
		}
	}

	return nil
}

// sources are this program's: the images are rebuilt when they change.
//
//go:embed *.go programs
var sources embed.FS

// stamp identifies a state of the sources.
func stamp(kube kubernetes, arch, only string) (string, error) {
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

	return arch + " " + hex.EncodeToString(sum.Sum(nil)) + " " + programs + only, err
}
