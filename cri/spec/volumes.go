package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxVolumes bounds the volumes that an image may declare.
const maxVolumes = 128

// volumes mounts an anonymous volume at each path that the image declares as a
// volume, unless another mount is there. They are writable even if the root is
// read-only.
//
// The paths are hostile. One in /proc or /sys could hide what the runtime and
// the container's own tools rely on there, so the image is rejected; one in
// /dev would hide the devices, and is left out.
func (b *builder) volumes(others []specs.Mount) ([]specs.Mount, error) {
	if b.Defaults.IgnoreImageVolumes {
		return nil, nil
	}
	if len(b.Image.Volumes) > maxVolumes {
		return nil, invalid("image declares %d volumes, at most %d are allowed", len(b.Image.Volumes), maxVolumes)
	}

	var out []specs.Mount
	taken := map[string]bool{}
	for _, m := range others {
		taken[m.Destination] = true
	}

	for _, declared := range slices.Sorted(maps.Keys(b.Image.Volumes)) {
		p := path.Clean("/" + declared)
		switch {
		case p == "/" || within(p, "/proc") || within(p, "/sys") || strings.ContainsRune(p, 0) || len(p) > maxPath:
			return nil, invalid("image declares a volume at %q", shorten(declared))
		case within(p, "/dev"):
			b.warn("volume of the image at " + p + " is left out")
			continue
		case taken[p]:
			continue
		}

		taken[p] = true
		sum := sha256.Sum256([]byte(p))
		uids, gids := b.userns.mappings()
		v := Volume{Path: p, Source: path.Join(b.VolumeDir, hex.EncodeToString(sum[:16])), UIDMappings: uids, GIDMappings: gids}
		b.out.Volumes = append(b.out.Volumes, v)

		m := specs.Mount{Destination: p, Type: "bind", Source: v.Source, Options: []string{"rbind", "rprivate", "rw"}}
		// The content is copied with the image's owners; the mapping shifts them.
		m.UIDMappings, m.GIDMappings = uids, gids
		out = append(out, m)
	}

	return out, nil
}
