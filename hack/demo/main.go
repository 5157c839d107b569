// Command demo shows a pod's life on crisp, from the pull of its image to its
// removal, with the duration of each step. It calls crisp as kubelet does,
// through the CRI, on a private node that is removed at the end.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"crisp/test/testkit/lab"
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: a container runtime needs root")
		os.Exit(1)
	}
	os.Exit(lab.Isolate(demo))
}

func demo() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := show(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		return 1
	}
	return 0
}

// show runs the demo and tears its node down again.
func show(ctx context.Context) error {
	began := time.Now()
	fmt.Println("A registry on loopback, crisp's own network, and the daemon:")
	cache, err := lab.Find()
	if err != nil {
		return err
	}

	images, err := cache.DemoImages()
	if err != nil {
		return err
	}

	l, err := lab.New(ctx, lab.Options{Storage: images, Own: "routed"})
	if err != nil {
		return err
	}

	fmt.Printf("%sready%s\n", indent, took(began))
	if err = play(ctx, l); err != nil {
		fmt.Fprintf(os.Stderr, "\nThe daemon's log:\n%s", l.Log())
	}

	ended := time.Now()
	if left := l.Close(context.WithoutCancel(ctx)); left != nil {
		return errors.Join(err, left)
	}

	fmt.Printf("\nThe daemon, its keeper and the registry are stopped%s\n", took(ended))
	if err == nil {
		fmt.Println("Nothing is left: no process, mount, namespace, cgroup, link or file.")
	}
	return err
}
