// Command hold holds memory, every page of which it has written: what a checkpoint has to
// save. Its arguments are how much, in MiB, and any text by which it is found.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	size, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "hold:", err)
		os.Exit(1)
	}

	held := make([]byte, size<<20)
	x := uint64(1)
	for i := range held { // nothing that is zero, or that can be compressed
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		held[i] = byte(x)
	}

	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
	fmt.Fprintln(os.Stdout, held[len(held)-1])
}
