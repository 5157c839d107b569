package image

import (
	"runtime"
	"slices"
	"strings"
)

// platform says on which machines an image runs.
type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

// String returns the usual name of a platform, "linux/arm/v7".
func (p platform) String() string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// empty reports whether a platform specifies neither system nor architecture.
func (p platform) empty() bool { return p.OS == "" && p.Architecture == "" }

// normal returns a platform under Go's names. Tools also write those of uname
// and of Debian, or upper case; what they leave out has the usual value.
func (p platform) normal() platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "" {
		p.OS = "linux"
	}

	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686":
		p.Architecture, p.Variant = "386", ""
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}

	p.Variant = normalVariant(p.Architecture, p.Variant)
	return p
}

func normalVariant(architecture, variant string) string {
	if variant != "" && !strings.HasPrefix(variant, "v") {
		variant = "v" + variant
	}
	variant = strings.TrimSuffix(variant, ".0")
	switch {
	case architecture == "amd64" && variant == "v1", architecture == "arm64" && variant == "v8":
		return ""
	case architecture == "arm" && variant == "":
		return "v7"
	}
	return variant
}

// platforms lists the platforms that run on a machine, the best first: its own
// architecture, then 32-bit ones that its kernel supports.
func platforms(architecture string, compat32 bool) []platform {
	list := []platform{{architecture, "linux", ""}}
	if !compat32 {
		return list
	}
	switch architecture {
	case "amd64":
		list = append(list, platform{"386", "linux", ""})
	case "arm64":
		for _, variant := range []string{"v8", "v7", "v6", "v5"} {
			list = append(list, platform{"arm", "linux", variant})
		}
	}
	return list
}

// rank orders the platforms that this machine supports, the best lowest. An
// unspecified platform comes last: the image's configuration decides.
func (s *Service) rank(p *platform) (int, bool) {
	supported := platforms(runtime.GOARCH, s.opts.Compat32)
	if p == nil || p.empty() {
		return len(supported), true
	}

	n := p.normal()
	if n.Architecture == "" {
		return len(supported), n.OS == "linux"
	}
	i := slices.Index(supported, n)
	return i, i >= 0
}
