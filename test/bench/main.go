// Command bench measures crisp side by side with containerd on one node, with
// the same registry, images, CNI plugins and network, and takes turns round by
// round: what the calls of a pod's life take, one client and many; what pods
// cost in memory and CPU; how long questions, restarts and pulls take; how fast
// logs are written; whether memory stays flat. Beneath the CRI it runs one OCI
// bundle with crisp, runc and crun. With -endpoint it measures a runtime that
// runs already instead.
//
// The phases are in files of their own (see the table in bench.go), all in
// the same shape: a method that measures one target once and adds samples.
//
// It writes every sample (samples.json), a report (report.md) and charts. It
// fails when a runtime fails, never because one is slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

type options struct {
	endpoint, peers, image, dir, out, publish, phases string
	rounds, samples                                   int
	full                                              bool
	amounts
}

// amounts are how much there is to measure with.
type amounts struct {
	scale    float64       // size of images
	most     int           // pods
	window   time.Duration // of CPU times
	logged   int           // MiB that a container logs
	execs    int           // commands over which memory is looked at
	execTime time.Duration // that they may take
	starts   int           // of each bundle in a round
	critest  int           // pods, and containers, of critest's benchmark
}

var (
	usual = amounts{scale: 0.125, most: 500, window: 10 * time.Second, logged: 64, execs: 5000, execTime: 40 * time.Second, starts: 10, critest: 10}
	full  = amounts{scale: 1, most: 500, window: time.Minute, logged: 1024, execs: 100000, execTime: time.Hour, starts: 50, critest: 50}
)

func main() {
	var o options
	flag.StringVar(&o.endpoint, "endpoint", "", "measure only the runtime at this `socket` (unix://…)")
	flag.StringVar(&o.peers, "peers", ".cache/peers", "the `directory` with containerd, its shim and runc; none if empty")
	flag.StringVar(&o.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "the `image` of the containers, with a shell")
	flag.StringVar(&o.dir, "dir", "", "the `directory`, made and removed, for the runtimes' data: its file system decides about pulls; one of /tmp if empty")
	flag.StringVar(&o.out, "out", ".cache/bench", "the `directory` for the results, and for the images to pull")
	flag.StringVar(&o.publish, "publish", "", "put report and charts into this `directory` of documentation too")
	flag.StringVar(&o.phases, "phases", strings.Join(phaseNames(), ","), "what to measure")
	flag.BoolVar(&o.full, "full", false, "everything at full size: an hour or more")

	scale := flag.Float64("scale", 0, "the size of the images to pull, 1 being full; decided by -full if 0")
	pods := flag.Int("pods", 0, "how many pods there are at most; decided by -full if 0")
	flag.IntVar(&o.rounds, "rounds", 6, "how many rounds of the first phase; others have fewer")
	flag.IntVar(&o.samples, "n", 12, "how many pods in a round of the first phase")
	flag.Parse()
	o.amounts = usual

	if o.full {
		o.amounts = full
	}
	if *scale > 0 {
		o.scale = *scale
	}

	if *pods > 0 {
		o.most = *pods
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: a container runtime needs root")
		os.Exit(1)
	}

	measure := func() int {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if err := measure(ctx, o); err != nil {
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

// measure sets up the targets, measures them and writes the results.
func measure(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	b := &bench{opt: o}

	if o.endpoint != "" {
		conn, err := grpc.NewClient(o.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		b.targets = []*target{{name: o.endpoint, endpoint: o.endpoint, runtime: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}}
	} else {
		closeAll, err := b.setUp(ctx)
		defer func() { err = errors.Join(err, closeAll(context.WithoutCancel(ctx))) }()
		if err != nil {
			return err
		}
	}

	began := time.Now()
	err = b.run(ctx)
	if len(b.samples.all) == 0 {
		return err
	}
	return errors.Join(err, b.publish(ctx, began))
}

// setUp makes the node with crisp and its peer. What it returns ends all of it.
func (b *bench) setUp(ctx context.Context) (closeAll func(context.Context) error, err error) {
	var closers []func(context.Context) error
	closeAll = func(ctx context.Context) error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i](ctx))
		}
		return errors.Join(errs...)
	}

	if b.stuck, err = newStuckPlugin(); err != nil {
		return closeAll, err
	}
	closers = append(closers, func(context.Context) error { return b.stuck.close() })
	l, err := lab.New(ctx, lab.Options{Dir: b.opt.dir, PluginDir: b.stuck.dir})
	if err != nil {
		return closeAll, err
	}

	closers = append(closers, l.Close)
	b.cgroupParent, b.dir = "/"+l.Name, l.Dir
	if b.cgroups, err = newPodCgroups(b.cgroupParent); err != nil {
		return closeAll, err
	}

	closers = append(closers, func(context.Context) error { return b.cgroups.close() })
	b.targets = []*target{{
		name: ours, endpoint: l.Endpoint, runtime: l.Runtime, images: l.Images, daemon: l,
		programs: []string{"crisp", "crisp-keeper"},
	}}

	if b.opt.peers != "" {
		c, t, err := newContainerd(ctx, l, b.opt.peers, b.stuck.dir)
		if err != nil {
			return closeAll, err
		}
		closers = append(closers, c.Close)
		b.targets = append(b.targets, t)
	}

	if b.plugins, err = newPlugins(ctx, l); err != nil {
		return closeAll, err
	}
	closers = append(closers, func(context.Context) error { b.plugins.network.Close(); return nil })
	out, err := filepath.Abs(b.opt.out)
	if err != nil {
		return closeAll, err
	}

	if b.pulls, err = newPullImages(ctx, l, out, b.opt.scale); err != nil {
		return closeAll, err
	}
	closers = append(closers, func(context.Context) error { return b.pulls.registry.Close() })
	return closeAll, nil
}
