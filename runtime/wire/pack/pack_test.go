package pack

import (
	"errors"
	"math"
	"reflect"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	var w Writer
	w.Uint(math.MaxUint64)
	w.Int(math.MinInt64)
	w.Bool(true)
	w.Bool(false)
	w.String("a\x00b")
	w.Blob([]byte{1, 2})
	w.Blob(nil)
	w.Strings([]string{"", "x"})
	w.Raw([]byte{9})

	r := NewReader(w.Bytes())
	got := []any{r.Uint(), r.Int(), r.Bool(), r.Bool(), r.String(), r.Blob(), r.Blob(), r.Strings(2), r.Raw(1)}
	want := []any{
		uint64(math.MaxUint64), int64(math.MinInt64), true, false, "a\x00b",
		[]byte{1, 2}, []byte(nil), []string{"", "x"}, []byte{9},
	}

	if err := r.Done(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, error %v", got, err)
	}
}

func TestRefuses(t *testing.T) {
	for name, read := range map[string]func(*Reader){
		"past the end":      func(r *Reader) { r.Raw(4) },
		"negative":          func(r *Reader) { r.Raw(-1) },
		"string too long":   func(r *Reader) { _ = r.String() },
		"list too long":     func(r *Reader) { r.Strings(9) },
		"count over limit":  func(r *Reader) { r.Count(0) },
		"truth value":       func(r *Reader) { r.Bool() },
		"bytes left":        func(r *Reader) { r.Raw(1) },
		"unfinished number": func(r *Reader) { r.Raw(2); r.Uint() },
	} {
		r := NewReader([]byte{100, 1, 0x80})
		read(r)

		if err := r.Done(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: error %v", name, err)
		}
		if r.Uint() != 0 || r.Int() != 0 || r.Bool() || r.String() != "" || r.Blob() != nil || r.Strings(1) != nil {
			t.Errorf("%s: values after an error", name)
		}
	}
}
