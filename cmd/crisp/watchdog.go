package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// watch tells the service manager, for as long as ctx lasts, that the daemon
// responds to requests, if its unit has a watchdog (WatchdogSec). Without that for
// so long, the service manager aborts the daemon, whose goroutines are then in the
// log, and starts another; pods keep running.
func watch(ctx context.Context, socket string) {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		klog.ErrorS(err, "The service manager's watchdog has an invalid interval, it will not be answered")
		return
	}
	if within == 0 {
		return
	}

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		klog.ErrorS(err, "Could not connect to the own socket, the watchdog will not be answered")
		return
	}
	defer conn.Close()
	c := runtimeapi.NewRuntimeServiceClient(conn)
	keepAlive(ctx, within, func(ctx context.Context) error { return responds(ctx, c) }, func() error {
		_, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		return err
	})
}

// keepAlive calls alive twice in each interval, after a successful probe that took
// at most half of it.
func keepAlive(ctx context.Context, within time.Duration, probe func(context.Context) error, alive func() error) {
	tick := time.NewTicker(within / 2)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, within/2)
		err := probe(limited)
		cancel()
		if err == nil {
			err = alive()
		}
		if err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "The daemon does not respond, the service manager may restart it", "after", within)
		}

		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// responds makes a request that takes the locks of the table of pods.
func responds(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
	const nobody = "-" // no ID begins so
	_, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: nobody}})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	return nil
}
