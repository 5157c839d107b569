package durable

import (
	"fmt"
	"os"
	"strings"
)

// BootID identifies this boot of the machine. What is written without a sync
// records it: read in another boot, such a file may be old, empty or torn.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
