package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"crisp/test/testkit/lab"
)

// critestParams are critest's own settings.
const critestParams = `containersNumber: %[1]d
containersNumberParallel: 1
containerBenchmarkTimeoutSeconds: 120
podsNumber: %[1]d
podsNumberParallel: 1
podBenchmarkTimeoutSeconds: 120
imagesNumber: %[1]d
imagesNumberParallel: 1
imageBenchmarkTimeoutSeconds: 120
imagePullingBenchmarkImage: %[2]s
podContainerStartBenchmarkTimeoutSeconds: 120
`

// critest runs critest's benchmark, unchanged, on a runtime.
func (b *bench) critest(ctx context.Context, t *target, round int) (err error) {
	cache, err := lab.Find()
	if err != nil {
		return err
	}

	critest, err := cache.Tool("critest")
	if err != nil {
		return err
	}

	dir, err := os.MkdirTemp(b.dir, "critest-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	image := b.opt.image
	if b.pulls != nil { // one that no other phase uses
		image = benchImage(crowded(b.opt.scale)[0].name).Image
	}

	params := filepath.Join(dir, "params.yaml")
	if err := os.WriteFile(params, fmt.Appendf(nil, critestParams, b.opt.critest, image), 0o644); err != nil {
		return err
	}

	cmd := exec.CommandContext(ctx, critest, "-benchmark", "-runtime-endpoint="+t.endpoint, "-benchmarking-params-file="+params,
		"-benchmarking-output-dir="+dir, "-ginkgo.no-color")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // it removes its pods
	cmd.WaitDelay = time.Minute

	out, failed := cmd.CombinedOutput()
	log := filepath.Join(b.opt.out, "critest-"+filepath.Base(t.name)+".log")
	if err := os.WriteFile(log, out, 0o644); err != nil {
		return err
	}

	files, err := filepath.Glob(filepath.Join(dir, "*_benchmark_data.json"))
	if err != nil {
		return err
	}

	if failed != nil || len(files) == 0 {
		b.note("critest", fmt.Sprintf("critest's benchmark failed with %s (%v); see %s.", t.name, failed, filepath.Base(log)))
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}

		found, err := parseCritest(data, strings.TrimSuffix(filepath.Base(file), "_benchmark_data.json"))
		if err != nil {
			return err
		}

		for _, s := range found {
			s.Runtime, s.Round = t.name, round
			b.samples.add(s)
		}
	}

	return nil
}

// parseCritest parses the results of critest's benchmark for a kind of object.
func parseCritest(data []byte, kind string) ([]Sample, error) {
	var r struct {
		OperationsNames []string
		Datapoints      []struct{ OperationsDurationsNs []int64 }
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read critest's results: %w", err)
	}

	var all []Sample
	for _, p := range r.Datapoints {
		if len(p.OperationsDurationsNs) != len(r.OperationsNames) {
			return nil, fmt.Errorf("read critest's results: %d times for %q", len(p.OperationsDurationsNs), r.OperationsNames)
		}
		for i, ns := range p.OperationsDurationsNs {
			all = append(all, Sample{Phase: "critest", Name: r.OperationsNames[i] + " (" + kind + ")", Value: milliseconds(time.Duration(ns)), Unit: "ms"})
		}
	}

	return all, nil
}
