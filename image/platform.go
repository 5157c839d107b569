package image

import (
	"runtime"
	"slices"
	"strings"
)

// platform is what decides where an image runs.
type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

// String names a platform as people do, "linux/arm/v7".
func (p platform) String() string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// empty reports whether a platform says nothing of where an image runs.
func (p platform) empty() bool { return p.OS == "" && p.Architecture == "" }

// normal returns a platform under the names that Go has for it. Tools also
// write those of uname, of Debian, and upper case; what they leave out is the usual.
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

// platforms lists what runs on a machine, the best first: its own
// architecture, and older ones whose programs its kernel runs.
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

// rank orders the platforms that run here, the best lowest. One that says
// nothing comes last: its image's configuration decides.
func (s *Service) rank(p *platform) (int, bool) {
	here := platforms(runtime.GOARCH, s.opts.Compat32)
	if p == nil || p.empty() {
		return len(here), true
	}
	n := p.normal()
	if n.Architecture == "" {
		return len(here), n.OS == "linux"
	}
	i := slices.Index(here, n)
	return i, i >= 0
}
