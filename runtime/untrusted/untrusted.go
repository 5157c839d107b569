// Package untrusted holds text from a container, an image or a plugin: any
// bytes, of any length. As a type of its own it cannot get into a response or a
// log by mistake; only the results of its methods can.
package untrusted

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// String is untrusted text.
type String struct{ text string }

// Of marks text as untrusted.
func Of(text string) String { return String{text} }

// Is reports whether the text equals a known one.
func (s String) Is(known string) bool { return s.text == known }

// cutMark is appended to truncated text.
const cutMark = "..."

// Text returns valid UTF-8 of at most limit bytes, for a message of the CRI.
// Invalid UTF-8 becomes U+FFFD; truncated text ends with "...". Different texts
// may become equal.
func (s String) Text(limit int) string {
	return cut(strings.ToValidUTF8(s.text, string(utf8.RuneError)), limit)
}

// Name returns text of at most limit bytes that is safe on a terminal and
// differs for different texts, unless truncated: invalid UTF-8, unprintable
// runes and backslashes are escaped, as \xff, \u202e and \\.
func (s String) Name(limit int) string {
	return cut(escape(s.text, func(r rune) bool { return r != '\\' && unicode.IsPrint(r) }), limit)
}

// Message returns valid UTF-8 of at most limit bytes, in which unprintable
// runes are escaped, except newlines and tabs: for errors that quote a plugin
// or a registry.
func (s String) Message(limit int) string {
	return cut(escape(s.text, func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) }), limit)
}

// escape escapes the runes that must not stay, and invalid UTF-8.
func escape(text string, stays func(rune) bool) string {
	var out strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size <= 1:
			writeHex(&out, 'x', 2, rune(text[i]))
		case stays(r):
			out.WriteRune(r)
		case r == '\\':
			out.WriteString(`\\`)
		case r < 0x10000:
			writeHex(&out, 'u', 4, r)
		default:
			writeHex(&out, 'U', 8, r)
		}
		i += size
	}

	return out.String()
}

func writeHex(out *strings.Builder, kind byte, digits int, r rune) {
	const hex = "0123456789abcdef"
	out.WriteByte('\\')
	out.WriteByte(kind)
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		out.WriteByte(hex[r>>shift&0xf])
	}
}

// cut truncates valid UTF-8 at a rune boundary.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := max(limit-len(cutMark), 0)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + cutMark[:min(len(cutMark), max(limit, 0))]
}
