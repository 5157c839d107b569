package wire

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrRecord is an exit record that cannot be read.
var ErrRecord = errors.New("malformed exit record")

// exitFormat is an exit record, which outlives the keeper in a file. Earlier
// keepers wrote it without the last line, as version 1.
const exitFormat = "crisp exit 2\nid %s\nkind %d\npid %d\ncode %d\nsignal %d\nat %d\noom %d\n"

// Record returns the exit as the content of its file.
func (m Exited) Record() []byte {
	return fmt.Appendf(nil, exitFormat, m.ID, m.Kind, m.Pid, m.Code, m.Signal, m.At, m.OOMKills)
}

// ParseRecord reads what Record wrote.
func ParseRecord(b []byte) (Exited, error) {
	var m Exited
	text := string(b)
	if old, ok := strings.CutPrefix(text, "crisp exit 1\n"); ok {
		text = "crisp exit 2\n" + old + "oom 0\n"
	}
	if _, err := fmt.Sscanf(text, exitFormat, &m.ID, &m.Kind, &m.Pid, &m.Code, &m.Signal, &m.At, &m.OOMKills); err != nil {
		return Exited{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return m, nil
}

// Time returns when the process exited.
func (m Exited) Time() time.Time { return time.Unix(0, m.At) }

// ValidID reports whether an ID is valid: it is also used as a file name.
func ValidID(id string) bool {
	if id == "" || len(id) > 200 || id[0] == '.' {
		return false
	}
	return strings.IndexFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) < 0
}
