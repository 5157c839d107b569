package image

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/image/rootfs"
	"crisp/runtime/rootpath"
)

// Prepare makes the directories for what container id writes on top of an
// image, given by its ID, and keeps the image's layers until Discard. uids and
// gids are the maps of the pod's user namespace, nil if it has none. It is
// idempotent.
func (s *Service) Prepare(id, imageID string, uids, gids []specs.LinuxIDMapping) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.Get(imageID)
	if err != nil {
		return fmt.Errorf("prepare root file system of %s: %w", id, err)
	}

	root, err := s.treeRoot(top(im))
	if err != nil {
		return fmt.Errorf("prepare root file system of %s: %w", id, err)
	}
	return s.containers.Prepare(id, top(im), root, func(uid, gid uint32) rootfs.Owner {
		return rootfs.Owner{UID: translate(uids, uid), GID: translate(gids, gid)}
	})
}

// top returns the chain ID of an image's topmost layer, "" if it has none.
func top(im Image) digest.Digest {
	if len(im.ChainIDs) == 0 {
		return ""
	}
	return im.ChainIDs[len(im.ChainIDs)-1]
}

// treeRoot stats the root directory of a layer.
func (s *Service) treeRoot(chain digest.Digest) (unix.Stat_t, error) {
	var st unix.Stat_t
	trees, err := s.layers.Trees(chain)
	if err != nil {
		return st, err
	}
	f, err := rootpath.Open(s.layers.Dir(), trees[0], unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return st, err
	}
	defer f.Close()
	return st, unix.Fstat(int(f.Fd()), &st)
}

// translate maps a user of the image to the host's. A user that is not mapped
// would show as nobody in the container; the first mapped user stands in.
func translate(maps []specs.LinuxIDMapping, id uint32) int {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID + (id - m.ContainerID))
		}
	}
	if len(maps) > 0 {
		return int(maps[0].HostID)
	}
	return int(id)
}

// Hold keeps the layers of another image, given by its ID, until container id
// is discarded: for images that are mounted as volumes.
func (s *Service) Hold(id, imageID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.Get(imageID)
	if err != nil {
		return fmt.Errorf("hold image for %s: %w", id, err)
	}
	return s.containers.Hold(id, top(im))
}

// View is how a container sees the files of an image.
type View struct {
	// UserNS, if not nil, is the user namespace that file owners are mapped to.
	UserNS *os.File
	// Label is their SELinux label; empty without SELinux.
	Label string
}

// Mount returns the root file system prepared for container id as a detached
// mount.
func (s *Service) Mount(ctx context.Context, id string, v View) (*os.File, error) {
	chain, err := s.containers.Chain(id)
	if err != nil {
		return nil, fmt.Errorf("mount root file system: %w", err)
	}

	lower, err := s.layers.Trees(chain)
	if err != nil {
		return nil, fmt.Errorf("mount root file system of %s: %w", id, err)
	}

	if targets := s.layers.Targets(chain); targets != "" {
		lower = append([]string{targets}, lower...)
	}
	upper, err := s.containers.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer upper.Close()

	o := s.layers.Overlay(lower)
	o.Upper, o.UserNS, o.Label = upper, v.UserNS, v.Label
	m, err := o.Mount(ctx)
	if err != nil {
		return nil, fmt.Errorf("mount root file system of %s: %w", id, classify(err))
	}
	return m, nil
}

// imageVolumeAttr are the mount attributes of an image volume: its files are
// data, not programs, devices or a place to write.
const imageVolumeAttr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// MountImage returns the content of an image, given by its ID, or of subPath in
// it, as a detached read-only mount. The caller must keep the image with
// [Service.Hold] first.
func (s *Service) MountImage(ctx context.Context, imageID, subPath string, v View) (*os.File, error) {
	im, err := s.Get(imageID)
	if err != nil {
		return nil, fmt.Errorf("mount image: %w", err)
	}

	m, err := s.mountReadOnly(ctx, top(im), v)
	if err != nil {
		return nil, fmt.Errorf("mount image %s: %w", im.ID, err)
	}

	if subPath == "" {
		return m, nil
	}
	defer m.Close()

	sub, err := rootfs.SubPath(m, subPath)
	if err != nil {
		return nil, fmt.Errorf("mount %q of image %s: %w", subPath, im.ID, err)
	}
	return sub, nil
}

// Discard removes what container id wrote, in the background, and releases the
// layers that it kept. It is idempotent.
func (s *Service) Discard(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := s.containers.Chains(id)
	gone, err := s.containers.Discard(id)
	if err != nil {
		return err
	}
	s.janitor.add(gone)
	if !slices.ContainsFunc(used, s.isOrphan) {
		return nil
	}
	_, err = s.collect()
	return err
}

// isOrphan reports whether no image has a layer any more.
func (s *Service) isOrphan(chain digest.Digest) bool {
	return chain != "" && !slices.ContainsFunc(s.List(), func(im Image) bool { return slices.Contains(im.ChainIDs, chain) })
}

// Containers lists the containers that have a root file system or images held.
func (s *Service) Containers() []string { return s.containers.IDs() }

// UpperDir returns the directory that holds what container id wrote.
func (s *Service) UpperDir(id string) string { return s.containers.UpperDir(id) }

// Upper opens the directory that holds what container id wrote.
func (s *Service) Upper(id string) (*os.File, error) {
	if _, err := s.containers.Chain(id); err != nil {
		return nil, fmt.Errorf("open files of container %s: %w", id, err)
	}
	upper, err := os.OpenFile(s.containers.UpperDir(id), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open files of container %s: %w", id, err)
	}
	return upper, nil
}

// Lower returns the files of container id's image as a detached read-only mount. It
// has them until the container is discarded, even if the image was removed.
func (s *Service) Lower(ctx context.Context, id string) (*os.File, error) {
	chain, err := s.containers.Chain(id)
	if err != nil {
		return nil, fmt.Errorf("mount image of container %s: %w", id, err)
	}
	m, err := s.mountReadOnly(ctx, chain, View{})
	if err != nil {
		return nil, fmt.Errorf("mount image of container %s: %w", id, err)
	}
	return m, nil
}

// mountReadOnly returns the files of a chain of layers as a detached read-only mount.
func (s *Service) mountReadOnly(ctx context.Context, chain digest.Digest, v View) (*os.File, error) {
	lower, err := s.layers.Trees(chain)
	if err != nil {
		return nil, err
	}

	o := s.layers.Overlay(lower)
	o.UserNS, o.Label, o.Attr = v.UserNS, v.Label, imageVolumeAttr
	m, err := o.Mount(ctx)
	if err != nil {
		return nil, classify(err)
	}
	return m, nil
}

// Usage measures the disk usage of what container id wrote, by a walk over every
// file.
func (s *Service) Usage(ctx context.Context, id string) (rootpath.Usage, error) {
	upper, err := s.Upper(id)
	if err != nil {
		return rootpath.Usage{}, fmt.Errorf("measure: %w", err)
	}
	defer upper.Close()
	return rootpath.Measure(ctx, upper)
}
