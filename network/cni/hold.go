package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// CommonCache is where runtimes keep the results of their attachments, unless they are
// configured otherwise. This package's client has a directory of its own.
const CommonCache = "/var/lib/cni"

// Hold keeps an attachment from being detached, by this process or another one, until
// release is called. It returns false if there is no attachment, or if it is being
// attached or detached.
func (c *Client) Hold(ctx context.Context, id string) (release func(), ok bool) {
	f, err := c.records.hold(ctx, id, 0)
	if err != nil || f == nil {
		return nil, false
	}
	// A detachment that held it removes the record.
	rec, err := c.records.load(id)
	if err != nil || rec == nil || !c.attached(rec) {
		f.Close()
		return nil, false
	}
	return func() { f.Close() }, true
}

// attached reports whether an ADD has succeeded, as far as that is known.
func (c *Client) attached(rec *record) bool {
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return false
	}
	return c.cached(list, runtimeConf(rec, rec.NetNS)) != nil
}

// hold locks a record against detachments. It is another lock than that of records.lock,
// which children of plugins may keep: it belongs to the open file and is no flock. The
// file is nil if there is no record, or if another one holds it for longer than wait.
func (r records) hold(ctx context.Context, id string, wait time.Duration) (*os.File, error) {
	path, err := r.path(id)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("hold attachment: %w", err)
	}

	for end := time.Now().Add(wait); ; {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return nil, errors.Join(fmt.Errorf("hold attachment: %w", err), f.Close())
		}
		if !time.Now().Before(end) {
			return nil, f.Close()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("hold attachment: %w", context.Cause(ctx)), f.Close())
		case <-time.After(lockInterval):
		}
	}
}

// Cached lists what runtimes with a common cache directory have attached, by the
// network's name.
func Cached(dir string) (map[string][]types.GCAttachment, error) {
	list, err := libcni.NewCNIConfigWithCacheDir(nil, dir, nil).GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("list attachments of other runtimes: %w", err)
	}
	all := map[string][]types.GCAttachment{}
	for _, a := range list {
		all[a.Network] = append(all[a.Network], types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return all, nil
}
