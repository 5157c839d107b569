//go:build crash

package pod

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

// killTimeout is short for tests.
const killTimeout = 5 * time.Second

// CrashEnv names the directory with a test's orders to [point].
const CrashEnv = "CRISP_CRASH"

// Files of that directory.
const (
	// CrashTrace gets a line for each failpoint that is passed.
	CrashTrace = "trace"
	// CrashOrders has a line for each order, "kill N POINT", "fail N POINT" or
	// "wait N POINT", which is executed when POINT is in the trace for the Nth
	// time. Then the next line applies.
	CrashOrders = "orders"
	// CrashGo is the file that ends a wait.
	CrashGo = "go"
)

// ErrCrash is the error of an order to fail.
var ErrCrash = errors.New("ordered failure")

// Tables lists the steps of the tables, in order.
func Tables() (sandbox, container []string) {
	for _, s := range sandboxSteps {
		sandbox = append(sandbox, s.name)
	}
	for _, s := range containerSteps {
		container = append(container, s.name)
	}
	return sandbox, container
}

// point passes a failpoint, for which a test may have ordered a kill or a
// failure.
func point(when, effect string) error {
	dir := os.Getenv(CrashEnv)
	if dir == "" {
		return nil
	}

	name := when + " " + effect
	passed, err := mark(filepath.Join(dir, CrashTrace), name)
	if err != nil {
		return err
	}

	orders := filepath.Join(dir, CrashOrders)
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
		return fmt.Errorf("%s: %w", name, ErrCrash)
	case "wait":
		return wait(filepath.Join(dir, CrashGo))
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
