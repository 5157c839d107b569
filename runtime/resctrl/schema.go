package resctrl

import (
	"fmt"
	"strings"
)

// schema is a line of schemata: "L3:0=7ff;1=1f" is the resource L3 with its shares by
// the numbers of caches.
type schema struct {
	resource string
	shares   map[string]string
}

// parse reads a line, which may not have another one in it.
func parse(line string) (schema, error) {
	resource, list, found := strings.Cut(line, ":")
	if !found || resource == "" || list == "" || strings.ContainsAny(line, "\n\x00") {
		return schema{}, fmt.Errorf("%w: %q is no line of schemata, like \"L3:0=7f;1=1f\"", ErrInvalid, line)
	}

	s := schema{resource: strings.TrimSpace(resource), shares: map[string]string{}}
	for one := range strings.SplitSeq(strings.TrimSuffix(list, ";"), ";") {
		cache, share, found := strings.Cut(one, "=")
		cache, share = normal(cache), normal(share)
		if !found || cache == "" || share == "" {
			return schema{}, fmt.Errorf("%w: %q in %q is not like \"0=7f\"", ErrInvalid, one, line)
		}
		s.shares[cache] = share
	}
	return s, nil
}

// normal is a number without what makes no difference: the kernel pads it.
func normal(number string) string {
	number = strings.ToLower(strings.TrimSpace(number))
	if short := strings.TrimLeft(number, "0"); short != "" || number == "" {
		return short
	}
	return "0"
}

// covers reports whether a class with s has the shares of other.
func (s schema) covers(other schema) bool {
	for cache, share := range other.shares {
		if s.shares[cache] != share {
			return false
		}
	}
	return true
}
