// Command bench measures how long the calls of a pod's life take, one pod
// after the other, on a crisp of its own or on any runtime's socket, and with
// -density what running pods cost in memory and processes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

type options struct {
	endpoint, image, cgroupParent string
	samples, density              int
}

func main() {
	var o options
	flag.StringVar(&o.endpoint, "endpoint", "", "measure the runtime at this `socket` (unix://…) instead of a crisp of our own")
	flag.StringVar(&o.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "the `image` of the containers, with a shell")
	flag.StringVar(&o.cgroupParent, "cgroup-parent", "", "the pods' parent `cgroup`")
	flag.IntVar(&o.samples, "n", 50, "how many pods to measure")
	flag.IntVar(&o.density, "density", 0, "how many pods to run at once for the costs")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: a container runtime needs root")
		os.Exit(1)
	}
	measure := func() int {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if err := bench(ctx, o); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}
	if o.endpoint != "" {
		os.Exit(measure())
	}
	os.Exit(lab.Isolate(measure))
}

// bench measures a runtime that runs, or starts one.
func bench(ctx context.Context, o options) (err error) {
	b := &bencher{opt: o}
	if o.endpoint == "" {
		l, err := lab.New(ctx, lab.Options{})
		if err != nil {
			return err
		}
		b.lab, b.runtime, b.images = l, l.Runtime, l.Images
		return errors.Join(b.run(ctx), l.Close(context.WithoutCancel(ctx)))
	}
	conn, err := grpc.NewClient(o.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	b.runtime, b.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return b.run(ctx)
}
