package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// maxDevices bounds the cached names; numbers of devices that come and go must
// not accumulate.
const maxDevices = 1024

// devices caches the names of block devices.
type devices struct {
	mu    sync.Mutex
	names map[[2]uint32]string
}

// name returns the path of a block device, "" if it has none: the devices of
// some file systems only have numbers.
func (d *devices) name(major, minor uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := [2]uint32{major, minor}
	if name, ok := d.names[key]; ok {
		return name
	}

	name := ""
	if target, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)); err == nil {
		name = "/dev/" + filepath.Base(target)
	}

	if d.names == nil || len(d.names) >= maxDevices {
		d.names = make(map[[2]uint32]string)
	}
	d.names[key] = name
	return name
}
