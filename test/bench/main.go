// Command bench compares crisp with containerd on one node, with the same
// registry, images, CNI plugins and network. It alternates between the two in
// each round and measures the latency of all calls in a pod's life, with one
// client and with many; the memory and CPU that pods cost; the latency of reads,
// restarts and pulls; the throughput of logs; and whether memory stays flat.
// Below the CRI it runs one OCI bundle with crisp, runc and crun. With -endpoint
// it measures a running runtime instead.
//
// Each phase is in a file of its own (see the table in bench.go) and has the same
// form: a method that measures one target once and adds samples.
//
// It writes all samples (samples.json), a report (report.md) and charts. It
// fails if a runtime fails, never because one is slow.
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

// amounts are the sizes of what is measured.
type amounts struct {
	scale    float64       // size of images
	most     int           // pods at most
	window   time.Duration // of CPU times
	logged   int           // MiB that a container logs
	execs    int           // commands over which memory is observed
	execTime time.Duration // for these commands
	starts   int           // of each bundle per round
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
	flag.StringVar(&o.dir, "dir", "", "the `directory`, created and removed, for the runtimes' data, whose file system determines the speed of pulls; in /tmp if empty")
	flag.StringVar(&o.out, "out", ".cache/bench", "the `directory` for the results, and for the images to pull")
	flag.StringVar(&o.publish, "publish", "", "update report and charts in this `directory` of documentation")
	flag.StringVar(&o.phases, "phases", strings.Join(phaseNames(), ","), "`phases` to measure; scale, which starts thousands of pods, is not among them unless it is named")
	flag.BoolVar(&o.full, "full", false, "everything at full size: an hour or more")

	scale := flag.Float64("scale", 0, "size of the images to pull, 1 being full size; 0 depends on -full")
	pods := flag.Int("pods", 0, "maximum number of pods; 0 depends on -full")
	flag.IntVar(&o.rounds, "rounds", 6, "rounds of the first phase; others have fewer")
	flag.IntVar(&o.samples, "n", 12, "pods in a round of the first phase")
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
		fmt.Fprintln(os.Stderr, "bench: container runtimes need root")
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

// setUp sets up the node with crisp and its peer. closeAll tears it down.
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
	criu, err := criuConfig()
	if err != nil {
		return closeAll, err
	}
	l, err := lab.New(ctx, lab.Options{Dir: b.opt.dir, PluginDir: b.stuck.dir, Config: criu})
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
		programs: []string{"crisp", "crisp-keeper"}, dir: l.Dir,
	}}

	own, err := lab.New(ctx, lab.Options{NoRegistry: true, Own: "routed", Second: true})
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, own.Close)
	if err := l.Registry.WriteHosts(filepath.Join(own.Dir, "certs.d")); err != nil {
		return closeAll, err
	}
	b.targets = append(b.targets, &target{
		name: oursOwn, endpoint: own.Endpoint, runtime: own.Runtime, images: own.Images, daemon: own,
		programs: []string{"crisp", "crisp-keeper"}, dir: own.Dir,
	})

	if b.opt.peers != "" {
		c, t, err := newContainerd(ctx, l, b.opt.peers, b.stuck.dir)
		if err != nil {
			return closeAll, err
		}
		closers = append(closers, c.Close)
		b.targets = append(b.targets, t)
	}

	if b.plugins, err = newPlugins(l, alone); err != nil {
		return closeAll, err
	}
	closers = append(closers, func(context.Context) error { b.plugins.network.Close(); return nil })
	if b.ownPlugins, err = newPlugins(own, ownAlone); err != nil {
		return closeAll, err
	}
	closers = append(closers, func(context.Context) error { b.ownPlugins.network.Close(); return nil })
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
