package svg

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"testing"
)

// TestTextCannotBreakOut draws what a label could be, which stays text.
func TestTextCannotBreakOut(t *testing.T) {
	const hostile = `</text><script>alert("1")</script>&amp;<![CDATA[`
	d := New(100, 50, 12, hostile)
	d.Panel(0, 0, 10, 10)
	d.Text(1, 2, Start, hostile)
	d.Faint(1, 2, Middle, hostile)
	d.Strong(1, 2, End, hostile)
	d.Curve([]Point{{1, 2}, {3, 4}}, "#000", 1)
	d.Area([]Point{{1, 2}, {3, 4}, {5, 6}}, "#000")

	texts := 0
	for dec := xml.NewDecoder(bytes.NewReader(d.Done())); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if token.Name.Local == "script" {
				t.Error("the text has become an element")
			}
		case xml.CharData:
			if string(token) == hostile {
				texts++
			}
		}
	}
	if texts != 4 { // the title and three lines
		t.Errorf("the text is in the picture %d times, want 4", texts)
	}
}
