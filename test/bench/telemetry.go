package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"crisp/test/testkit/collector"
)

const (
	telemetryPhase = "telemetry"
	// silent and told are the names of its samples, without and with metrics and traces.
	silent, told = "off", "metrics and traces"
	// scrapeEvery is how often metrics are fetched, more often than Prometheus does.
	scrapeEvery = time.Second
)

// telemetry compares crisp with its own network, while other pods run, with and without
// metrics, which are fetched, and traces of each call.
func (b *bench) telemetry(ctx context.Context, round int) (err error) {
	i := slices.IndexFunc(b.targets, func(t *target) bool { return t.name == oursOwn })
	if i < 0 {
		return nil
	}

	g := &grown{bench: b, t: b.targets[i], phase: telemetryPhase, round: round, networked: networked}
	defer func() { err = errors.Join(err, g.shrink(context.WithoutCancel(ctx))) }()
	if err := g.growTo(ctx, networked); err != nil {
		return err
	}
	variants := []string{silent, told}
	if round%2 == 1 {
		slices.Reverse(variants)
	}
	for _, name := range variants {
		if err := g.observed(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// observed measures one variant, with a daemon of its own. The one that is there in the end has
// its usual configuration.
func (g *grown) observed(ctx context.Context, name string) (err error) {
	path := filepath.Join(g.t.dir, "config.toml")
	usual, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	reconfigure := func(ctx context.Context, config []byte) error {
		if err := g.t.daemon.Stop(); err != nil {
			return err
		}
		if err := os.WriteFile(path, config, 0o644); err != nil {
			return err
		}
		return g.t.daemon.Start(ctx)
	}
	defer func() { err = errors.Join(err, reconfigure(context.WithoutCancel(ctx), usual)) }()

	config := usual
	if name == told {
		more, end, lerr := listen(ctx)
		if lerr != nil {
			return lerr
		}
		defer func() { err = errors.Join(err, end()) }()
		config = slices.Concat(usual, []byte(more))
	}
	if err := reconfigure(ctx, config); err != nil {
		return err
	}

	for range 3 { // to warm up
		if err := g.live(ctx, g.quiet()); err != nil {
			return err
		}
	}
	for range g.opt.samples {
		if err := g.live(ctx, g.client(g.t, g.recorder(telemetryPhase, name, g.round, networked))); err != nil {
			return err
		}
	}

	pss, err := g.t.memory()
	if err != nil {
		return err
	}
	g.samples.add(Sample{telemetryPhase, name, g.round, networked, "PSS of the daemon", float64(pss["crisp"]), "KiB"})
	return nil
}

// listen takes traces and fetches metrics, of a daemon with the returned configuration, until
// end, which fails if there were none.
func listen(ctx context.Context) (config string, end func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a free port
	if err != nil {
		return "", nil, err
	}
	metricsAddress := l.Addr().String()
	l.Close()
	c, err := collector.Serve()
	if err != nil {
		return "", nil, err
	}

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	scraped := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			wait := scrapeEvery
			if scrape(ctx, metricsAddress) == nil {
				scraped++
			} else {
				wait /= 10 // it is not there yet
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	})

	end = func() error {
		cancel()
		wg.Wait()
		spans := len(c.Spans())
		c.Close()
		if scraped == 0 || spans == 0 {
			return fmt.Errorf("metrics were fetched %d times, and %d spans came", scraped, spans)
		}
		return nil
	}
	return fmt.Sprintf("metrics_address = %q\ntracing_endpoint = %q\ntracing_sampling_rate_per_million = 1000000\n", metricsAddress, c.Address), end, nil
}

// scrape fetches metrics once.
func scrape(ctx context.Context, address string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// telemetrySection prints what metrics and traces cost.
func (b *bench) telemetrySection(w *bytes.Buffer) {
	keys := b.samples.keys(telemetryPhase)
	if len(keys) == 0 {
		return
	}

	fmt.Fprintf(w, "\n### Metrics and traces, at %d pods\n\n", networked)
	fmt.Fprintf(w, "%s, without and with metrics, fetched each second, and with spans of all calls. Milliseconds, and KiB.\n\n", oursOwn)
	fmt.Fprintf(w, "| | %s p50 | p99 | %s p50 | p99 | more than without, median of the rounds (min – max) |\n|---|--:|--:|--:|--:|--:|\n", silent, told)
	for _, k := range keys {
		off, on := b.samples.of(k, silent), b.samples.of(k, told)
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", k.name, cells(off), cells(on), percentMore(off.ratios(on)))
	}
}

// percentMore formats sorted ratios, of which one is no difference.
func percentMore(r []float64) string {
	if len(r) == 0 {
		return ""
	}
	percent := func(v float64) float64 { return 100 * (v - 1) }
	return fmt.Sprintf("%+.1f %% (%+.1f – %+.1f)", percent(quantile(r, 0.5)), percent(r[0]), percent(r[len(r)-1]))
}

// telemetryCost is by how many percent pods are ready later with metrics and traces, the
// median of the rounds.
func (b *bench) telemetryCost() (float64, bool) {
	k := key{telemetryPhase, "pod ready", networked}
	r := b.samples.of(k, silent).ratios(b.samples.of(k, told))
	return 100 * (quantile(r, 0.5) - 1), len(r) > 0
}

// telemetryMemory is how much more memory the daemon has then, in KiB.
func (b *bench) telemetryMemory() (float64, bool) {
	k := key{telemetryPhase, "PSS of the daemon", networked}
	off, on := b.samples.of(k, silent).whole(), b.samples.of(k, told).whole()
	return quantile(on, 0.5) - quantile(off, 0.5), len(off) > 0 && len(on) > 0
}
