package pod

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/image"
)

func TestImageNames(t *testing.T) {
	const id, sum = "sha256:0123456789012345678901234567890123456789012345678901234567890123", "@sha256:aaaa"
	img := image.Image{
		ID: id, RepoTags: []string{"docker.io/library/web:1", "quay.io/web:2"},
		RepoDigests: []string{"docker.io/library/web" + sum, "quay.io/web" + sum},
	}

	for _, c := range []struct {
		name, asked, user string
		img               image.Image
		ref, digest       string
	}{
		{"by tag", "quay.io/web:2", "", img, "quay.io/web:2", "quay.io/web" + sum},
		{"by a short tag", "web:1", "", img, "web:1", "docker.io/library/web" + sum},
		{"by id", id, "", img, "docker.io/library/web:1", "docker.io/library/web" + sum},
		{"by the beginning of its id", "0123456", "", img, "docker.io/library/web:1", "docker.io/library/web" + sum},
		{"as kubelet asks", id, "quay.io/web:2", img, "quay.io/web:2", "quay.io/web" + sum},
		{"without names", id, "", image.Image{ID: id}, id, ""},
		{"in no repository that it is in", "gone.io/web", "", img, "gone.io/web", "docker.io/library/web" + sum},
	} {
		cfg := &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: c.asked, UserSpecifiedImage: c.user}}
		if ref, digest := imageRef(cfg, c.img), imageDigest(cfg, c.img); ref != c.ref || digest != c.digest {
			t.Errorf("%s: shown as %q and %q, want %q and %q", c.name, ref, digest, c.ref, c.digest)
		}
	}
}
