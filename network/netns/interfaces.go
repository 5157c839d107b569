package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"crisp/runtime/untrusted"
)

// maxInterfaces bounds how many interfaces are listed, maxDev how many bytes are
// read to find them: a pod with CAP_NET_ADMIN can create any number of them.
const (
	maxInterfaces = 128
	maxDev        = 64 << 10
)

// InterfaceStats are the traffic counters of one interface.
type InterfaceStats struct {
	// Name has up to 15 bytes, without slash, colon and space. A pod with
	// CAP_NET_ADMIN chooses it.
	Name untrusted.String
	// Rx counts what the interface received, Tx what it sent.
	Rx, Tx Traffic
}

// Traffic are the counters of one direction.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Interfaces lists the first 128 interfaces of a network namespace, in the kernel's
// order and including loopback.
func Interfaces(ns *os.File) ([]InterfaceStats, error) {
	var list []InterfaceStats
	err := Do(ns, func() error {
		f, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer f.Close()

		list, err = parseDev(io.LimitReader(f, maxDev))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}

	return list, nil
}

// parseDev parses /proc/net/dev: two header lines, then
// "name: bytes packets errs drop fifo frame compressed multicast" and eight
// more columns for the other direction.
func parseDev(r io.Reader) ([]InterfaceStats, error) {
	var list []InterfaceStats
	lines := bufio.NewReader(r)
	for len(list) < maxInterfaces {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return list, nil // an incomplete last line was truncated by the limit
		}
		if err != nil {
			return nil, err
		}

		name, counters, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}

		// Only blanks: names may contain other white space.
		name = strings.TrimLeft(name, " ")
		fields := strings.Fields(counters)
		if len(fields) < 16 {
			return nil, fmt.Errorf("interface %q: %d columns", name, len(fields))
		}

		rx, err := parseTraffic(fields[0:4])
		if err != nil {
			return nil, err
		}

		tx, err := parseTraffic(fields[8:12])
		if err != nil {
			return nil, err
		}
		list = append(list, InterfaceStats{Name: untrusted.Of(name), Rx: rx, Tx: tx})
	}

	return list, nil
}

func parseTraffic(columns []string) (Traffic, error) {
	var t Traffic
	for i, into := range []*uint64{&t.Bytes, &t.Packets, &t.Errors, &t.Dropped} {
		n, err := strconv.ParseUint(columns[i], 10, 64)
		if err != nil {
			return Traffic{}, err
		}
		*into = n
	}
	return t, nil
}
