// Command monitoring draws the board of dashboard.json, with data: it runs a daemon on
// a private node, gives it a load, has Prometheus scrape it, and writes the board's
// panels as a picture.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/prometheus"
)

// interval is the time between two scrapes. That of a node is 15 s or more; the load is
// as many times shorter than what one would look at.
const interval = 2 * time.Second

// options are the command's.
type options struct {
	board, picture string
	during         time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.board, "board", "hack/monitoring/dashboard.json", "`FILE` of the board")
	flag.StringVar(&o.picture, "picture", "docs/operate/board.svg", "`FILE` to write")
	flag.DurationVar(&o.during, "for", 5*time.Minute, "how long the load lasts")
	flag.Parse()

	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "monitoring: a container runtime needs root")
		os.Exit(1)
	}
	os.Exit(lab.Isolate(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if err := o.run(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "monitoring:", err)
			return 1
		}
		return 0
	}))
}

// run loads a daemon and draws what was measured.
func (o options) run(ctx context.Context) (err error) {
	board, err := prometheus.ReadBoard(o.board)
	if err != nil {
		return err
	}
	cache, err := lab.Find()
	if err != nil {
		return err
	}
	program, err := cache.Tool("prometheus")
	if err != nil {
		return fmt.Errorf("%w; make monitoring fetches it from Debian", err)
	}

	l, err := lab.New(ctx, lab.Options{Own: "bridge", Config: "metrics_address = \"127.0.0.1:0\"\n"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close(context.WithoutCancel(ctx))) }()
	address := regexp.MustCompile(`msg="Serving metrics" address=(\S+)`).FindStringSubmatch(l.Log())
	if address == nil {
		return fmt.Errorf("the daemon serves no metrics:\n%s", l.Log())
	}

	dir := filepath.Join(l.Dir, "prometheus")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	server, err := prometheus.Start(ctx, prometheus.Options{Program: program, Dir: dir, Target: address[1], Instance: "node1", Interval: interval})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()

	began := time.Now()
	if err := newLoad(l, o.during).run(ctx); err != nil {
		return fmt.Errorf("load: %w\nThe daemon's log:\n%s", err, l.Log())
	}
	picture, err := draw(ctx, server, board, began, time.Now())
	if err != nil {
		return err
	}
	return os.WriteFile(o.picture, picture, 0o644)
}
