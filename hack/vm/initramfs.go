package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bootModules are what a kernel that has nothing built in needs to mount its
// disk; crc32c checks ext4's metadata and is no module's dependency.
var bootModules = []string{"nvme", "crc32c_generic", "ext4"}

// initScript mounts the disk and continues there. The directory of devices
// moves along, since the disk has none of them.
const initScript = `#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for module in %s; do
	/busybox insmod "/$module" || echo "initramfs: $module was not loaded"
done
until /busybox mount -t ext4 /dev/nvme0n1 /root 2>/dev/null; do
	/busybox sleep 1
done
/busybox mount -o move /dev /root/dev
exec /busybox switch_root /root /sbin/init
`

// makeInitramfs returns an initramfs for the kernel of an installed Debian,
// which has a static busybox.
func makeInitramfs(tree string) ([]byte, error) {
	lists, err := filepath.Glob(filepath.Join(tree, "usr/lib/modules/*/modules.dep"))
	if err != nil {
		return nil, err
	}
	if len(lists) != 1 {
		return nil, fmt.Errorf("there are the modules of %d kernels instead of one", len(lists))
	}

	list, err := os.ReadFile(lists[0])
	if err != nil {
		return nil, err
	}
	files, err := loadOrder(string(list), bootModules)
	if err != nil {
		return nil, err
	}

	a := &archive{}
	a.add("dev", 0o040755, nil)
	a.add("root", 0o040755, nil)
	if err := a.copy("busybox", filepath.Join(tree, "usr/bin/busybox")); err != nil {
		return nil, err
	}

	var names []string
	for _, file := range files {
		name := filepath.Base(file)
		names = append(names, name)
		if err := a.copy(name, filepath.Join(filepath.Dir(lists[0]), file)); err != nil {
			return nil, err
		}
	}

	a.add("init", 0o100755, fmt.Appendf(nil, initScript, strings.Join(names, " ")))
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes(), nil
}

// loadOrder returns the files of modules, each after those it depends on,
// which a line of modules.dep lists in the reverse order.
func loadOrder(list string, modules []string) (files []string, err error) {
	for _, module := range modules {
		found := false
		for line := range strings.Lines(list) {
			file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
			if name, _, _ := strings.Cut(filepath.Base(file), "."); name != module {
				continue
			}
			found = true
			for _, f := range slices.Backward(append([]string{file}, strings.Fields(needs)...)) {
				if !slices.Contains(files, f) {
					files = append(files, f)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("the kernel has no module %s", module)
		}
	}

	return files, nil
}

// archive is a cpio archive in the form "newc".
type archive struct {
	bytes.Buffer
	files int
}

func (a *archive) copy(name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.add(name, 0o100755, data)
	return nil
}

// add adds a file or directory; header and data end at multiples of four.
func (a *archive) add(name string, mode int, data []byte) {
	a.files++
	fmt.Fprintf(a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.files, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
