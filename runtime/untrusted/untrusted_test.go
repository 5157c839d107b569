package untrusted

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestForms(t *testing.T) {
	for _, tt := range []struct{ text, asText, asName, asMessage string }{
		{"eth0", "eth0", "eth0", "eth0"},
		{"größe", "größe", "größe", "größe"},
		{"a\xffb", "a\uFFFDb", `a\xffb`, `a\xffb`},
		{`a\xffb`, `a\xffb`, `a\\xffb`, `a\xffb`},
		{"\uFFFD", "\uFFFD", "\uFFFD", "\uFFFD"},
		{"a\x1b[2J", "a\x1b[2J", `a\u001b[2J`, `a\u001b[2J`},
		{"one\ntwo\t3\r", "one\ntwo\t3\r", `one\u000atwo\u00093\u000d`, "one\ntwo\t3\\u000d"},
		{"\u202etxt", "\u202etxt", `\u202etxt`, `\u202etxt`},
		{"\U000e0001", "\U000e0001", `\U000e0001`, `\U000e0001`},
	} {
		s := Of(tt.text)
		if got := s.Text(100); got != tt.asText {
			t.Errorf("Text of %q is %q, want %q", tt.text, got, tt.asText)
		}

		if got := s.Name(100); got != tt.asName {
			t.Errorf("Name of %q is %q, want %q", tt.text, got, tt.asName)
		}
		if got := s.Message(100); got != tt.asMessage {
			t.Errorf("Message of %q is %q, want %q", tt.text, got, tt.asMessage)
		}
	}
	if long := Of(strings.Repeat("ß", 100)).Text(12); long != "ßßßß..." {
		t.Errorf("cut to %q", long)
	}
}

func FuzzForms(f *testing.F) {
	f.Add("eth0", "eth\xff", 10)
	f.Add(`\xff`, "\xff", 3)
	f.Add("\\", "\\\\", 0)
	f.Fuzz(func(t *testing.T, a, b string, limit int) {
		for _, got := range []string{Of(a).Text(limit), Of(a).Name(limit), Of(a).Message(limit)} {
			if !utf8.ValidString(got) || len(got) > max(limit, 0) {
				t.Errorf("%q becomes %q at most %d bytes long", a, got, limit)
			}
		}

		const all = 1 << 30
		if (a == b) != (Of(a).Name(all) == Of(b).Name(all)) {
			t.Errorf("%q and %q become %q and %q", a, b, Of(a).Name(all), Of(b).Name(all))
		}
	})
}
