// Package untrusted holds text that a container, an image or a plugin chose:
// it may be any bytes, of any length. As a type of its own it cannot be put
// into an answer or a log by mistake; what can is what its methods return.
package untrusted

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// String is text that somebody else chose.
type String struct{ text string }

// Of marks text as somebody else's.
func Of(text string) String { return String{text} }

// Is reports whether the text is one that we know.
func (s String) Is(known string) bool { return s.text == known }

// cutMark ends text that was cut.
const cutMark = "..."

// Text returns valid UTF-8 of at most limit bytes, as a message of the CRI
// takes it. What is not UTF-8 becomes U+FFFD; text that is too long ends with
// "...". Different texts may become the same.
func (s String) Text(limit int) string {
	return cut(strings.ToValidUTF8(s.text, string(utf8.RuneError)), limit)
}

// Name returns text of at most limit bytes that can be shown on a terminal and
// in which different texts differ, unless they are cut: what is not UTF-8,
// cannot be printed, or is a backslash is escaped, as \xff, \u202e and \\.
func (s String) Name(limit int) string {
	return cut(escape(s.text, func(r rune) bool { return r != '\\' && unicode.IsPrint(r) }), limit)
}

// Message returns valid UTF-8 of at most limit bytes, in which what cannot be
// printed is escaped, but for line breaks and tabs: for errors that quote a
// plugin or a registry.
func (s String) Message(limit int) string {
	return cut(escape(s.text, func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) }), limit)
}

// escape escapes the runes that may not stay, and all that is not UTF-8.
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

// cut shortens valid UTF-8 at the border of a rune.
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
