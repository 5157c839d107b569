package netdev

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often a list is asked for that changes while the kernel makes it.
const dumpTries = 20

// Dump returns a whole list of the kernel's: it asks again if something of the list has
// changed meanwhile, so that it may have gaps.
func Dump[T any](list func() ([]T, error)) ([]T, error) {
	for left := dumpTries; ; left-- {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || left == 1 {
			return all, err
		}
	}
}
