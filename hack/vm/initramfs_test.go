package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestLoadOrder(t *testing.T) {
	const list = `kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz
kernel/lib/crc16.ko.xz:
kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz kernel/drivers/nvme/common/nvme-auth.ko.xz
kernel/fs/other.ko.xz: kernel/lib/crc16.ko.xz
`
	want := []string{
		"kernel/drivers/nvme/common/nvme-auth.ko.xz", "kernel/drivers/nvme/host/nvme-core.ko.xz", "kernel/drivers/nvme/host/nvme.ko.xz",
		"kernel/fs/jbd2/jbd2.ko.xz", "kernel/fs/mbcache.ko.xz", "kernel/lib/crc16.ko.xz", "kernel/fs/ext4/ext4.ko.xz",
	}
	if got, err := loadOrder(list, []string{"nvme", "ext4"}); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := loadOrder(list, []string{"xfs"}); err == nil {
		t.Error("a module that is missing is not an error")
	}
}

// TestArchive has cpio list an archive.
func TestArchive(t *testing.T) {
	a := &archive{}
	a.add("dir", 0o040755, nil)
	a.add("file", 0o100755, []byte("hello"))
	a.add("TRAILER!!!", 0, nil)

	cmd := exec.Command("cpio", "-tv", "--quiet")
	cmd.Stdin = &a.Buffer
	out, err := cmd.CombinedOutput()
	if text := string(out); err != nil || !strings.Contains(text, "drwxr-xr-x") || !strings.Contains(text, " 5 ") || strings.Count(text, "\n") != 2 {
		t.Errorf("cpio lists %q, %v", text, err)
	}
}
