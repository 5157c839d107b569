//go:build crash

package failpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/durable"
)

// Env names the directory with a test's orders to [Pass].
const Env = "CRISP_CRASH"

// Files of that directory.
const (
	// Trace gets a line for each failpoint that is passed.
	Trace = "trace"
	// Orders has a line for each order, "kill N POINT", "fail N POINT" or
	// "wait N POINT", which is executed when POINT is in the trace for the Nth
	// time. Then the next line applies.
	Orders = "orders"
	// Go is the file that ends a wait.
	Go = "go"
)

// ErrOrdered is the error of an order to fail.
var ErrOrdered = errors.New("ordered failure")

// Pass passes a failpoint, for which a test may have ordered a kill or a failure.
func Pass(when, effect string) error {
	dir := os.Getenv(Env)
	if dir == "" {
		return nil
	}

	name := when + " " + effect
	passed, err := mark(filepath.Join(dir, Trace), name)
	if err != nil {
		return err
	}

	orders := filepath.Join(dir, Orders)
	data, err := os.ReadFile(orders)
	if err != nil {
		return nil // no order
	}

	first, rest, _ := strings.Cut(string(data), "\n")
	kind, what, _ := strings.Cut(first, " ")
	if what != fmt.Sprint(passed, " ", name) {
		return nil
	}

	if err := durable.ReplaceFile(orders, []byte(rest), 0o600); err != nil {
		return err
	}
	switch kind {
	case "fail":
		return fmt.Errorf("%s: %w", name, ErrOrdered)
	case "wait":
		return wait(filepath.Join(dir, Go))
	}

	_ = unix.Kill(os.Getpid(), unix.SIGKILL) // cannot fail
	select {}
}

// wait returns when the file exists.
func wait(path string) error {
	const patience = 30 * time.Second
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s was not created within %v", path, patience)
}

// mark records that a failpoint was passed and counts how often.
func mark(path, name string) (int, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, name); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(path)
	return strings.Count("\n"+string(data), "\n"+name+"\n"), err
}
