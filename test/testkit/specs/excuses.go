package specs

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Excuses list the specs that need not pass, and why, one per line:
//
//	never       PATTERN  # reason   is left out
//	may         PATTERN  # reason   may skip itself
//	never:PATH  PATTERN  # reason   is left out on a machine without PATH
//	may:PATH    PATTERN  # reason   may skip itself on a machine without PATH
//
// PATTERN is a regular expression for the name of the spec.
type Excuses []excuse

type excuse struct {
	never   bool
	pattern *regexp.Regexp
	reason  string
}

var excuseLine = regexp.MustCompile(`^(never|may)(?::(\S+))?\s+(.*?)\s+#\s+(\S.*)$`)

// ParseExcuses reads a list. Empty lines and those that begin with # are
// passed over, and so is what the machine has no need of.
func ParseExcuses(list string) (Excuses, error) {
	var all Excuses
	lines := bufio.NewScanner(strings.NewReader(list))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}

		m := excuseLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf(`list of excuses, line %d: want "never|may[:PATH] PATTERN # reason"`, n)
		}

		pattern, err := regexp.Compile(m[3])
		if err != nil {
			return nil, fmt.Errorf("list of excuses, line %d: %w", n, err)
		}

		if _, err := os.Stat(m[2]); m[2] != "" && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		all = append(all, excuse{m[1] == "never", pattern, m[4]})
	}

	return all, lines.Err()
}

// LeftOut are the patterns of the specs that are not to run.
func (e Excuses) LeftOut() []string {
	var patterns []string
	for _, x := range e {
		if x.never {
			patterns = append(patterns, x.pattern.String())
		}
	}
	return patterns
}

// reason is why a spec may be skipped.
func (e Excuses) reason(name string) (string, bool) {
	i := slices.IndexFunc(e, func(x excuse) bool { return x.pattern.MatchString(name) })
	if i < 0 {
		return "", false
	}
	return e[i].reason, true
}
