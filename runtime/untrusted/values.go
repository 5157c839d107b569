package untrusted

import (
	"errors"
	"fmt"
	"io"
)

// ErrValues means that a document has more values than its reader accepts.
var ErrValues = errors.New("document has too many values")

// CountValues counts the potential values in a JSON text, that is, whatever
// follows a bracket, a comma or a colon. It allocates nothing but a buffer, and
// ends with [ErrValues] beyond most: two bytes of JSON may decode to hundreds in
// memory, so the length of a text does not bound what it takes.
func CountValues(r io.Reader, most int) (int, error) {
	buf := make([]byte, 32<<10)
	count, inString, escaped := 0, false, false
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			switch {
			case escaped:
				escaped = false
			case inString:
				escaped, inString = c == '\\', c != '"'
			case c == '"':
				inString = true
			case c == '{', c == '[', c == ',', c == ':':
				count++
			}
		}

		switch {
		case count > most:
			return 0, fmt.Errorf("%w: more than %d", ErrValues, most)
		case errors.Is(err, io.EOF):
			return count, nil
		case err != nil:
			return 0, fmt.Errorf("read document: %w", err)
		}
	}
}
