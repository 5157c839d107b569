// Command nmeter is the part of busybox's command, which Debian omits, that
// Kubernetes' tests use: the time of day to the millisecond.
package main

import (
	"os"
	"time"
)

func main() {
	if _, err := os.Stdout.WriteString(time.Now().UTC().Format("15:04:05.000\n")); err != nil {
		os.Exit(1)
	}
}
