package image

import (
	"context"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"crisp/image/rootfs"
	"crisp/runtime/rootpath"
)

// commonTargets returns the mount points that every container needs.
func commonTargets() (dirs, files []string) {
	return []string{"/dev", "/proc", "/sys"}, []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
}

// stageTargets makes the mount targets that an image lacks, as its first
// container would, in a small layer of their own. Without that layer each
// container would have to copy up /etc to make them. It returns the name of a
// directory in the temporary directory that holds them, "" if there is nothing
// to do, or if it fails: then each container makes them itself.
func (s *Service) stageTargets(ctx context.Context, chain digest.Digest) string {
	if chain == "" || s.layers.Targets(chain) != "" {
		return ""
	}
	dir, err := os.MkdirTemp(s.blobs.TempDir(), "targets-*")
	if err == nil {
		if err = s.fillTargets(ctx, chain, dir); err == nil {
			return filepath.Base(dir)
		}
		s.janitor.add(filepath.Base(dir))
	}
	klog.InfoS("Could not make mount targets for an image; each container makes its own", "layer", chain, "err", err)
	return ""
}

// publishTargets moves staged targets to their layer.
func (s *Service) publishTargets(ctx context.Context, chain digest.Digest, staged string) error {
	if staged == "" {
		return nil
	}
	defer s.janitor.add(staged)
	if rec, _ := s.layers.Get(chain); rec.Unsynced == "" {
		// The layer counts as synced, with everything in its directory.
		if err := s.syncDisk(ctx); err != nil {
			return err
		}
	}
	return s.layers.AddTargets(chain, filepath.Join(staged, rootfs.UpperName))
}

func (s *Service) fillTargets(ctx context.Context, chain digest.Digest, dir string) error {
	lower, err := s.layers.Trees(chain)
	if err != nil {
		return err
	}

	root, err := s.treeRoot(chain)
	if err != nil {
		return err
	}

	if err := rootfs.MakeUpper(dir, root); err != nil {
		return err
	}
	upper, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer upper.Close()

	o := s.layers.Overlay(lower)
	o.Upper = upper
	m, err := o.Mount(ctx)
	if err != nil {
		return err
	}
	defer m.Close()

	dirs, files := commonTargets()
	for _, name := range dirs {
		if err := rootpath.CreateTarget(m, name, true, rootpath.Owner{}); err != nil {
			return err
		}
	}

	for _, name := range files {
		if err := rootpath.CreateTarget(m, name, false, rootpath.Owner{}); err != nil {
			return err
		}
	}

	return nil
}
