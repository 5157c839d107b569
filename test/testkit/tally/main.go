package tally

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main is the main function of a program that runs tests: it cancels run's
// context on SIGINT and SIGTERM, prints the counts, writes them to a file if
// given, and returns the exit status. An error of run is one more failure.
func Main(program, file string, run func(context.Context) (Tally, error)) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	t, err := run(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		t.Failed++
	}

	fmt.Printf("%s: %s\n", program, t)
	if err := t.Write(file); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		return 1
	}

	if t.Failed > 0 {
		return 1
	}
	return 0
}
