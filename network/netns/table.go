package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// RemoveTable removes the table of this name, of family inet, from the packet filter
// of a network namespace. It is no error if there is none.
func RemoveTable(ns *os.File, name string) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return fmt.Errorf("remove packet filter table %s: %w", name, err)
	}

	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove packet filter table %s: %w", name, err)
	}
	return nil
}
