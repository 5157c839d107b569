// Package pack writes and reads the compact binary form that plans and keeper
// messages share: unsigned and zigzag varints, and length-prefixed strings.
//
// A [Reader] never trusts a length: every count is checked against the bytes
// that are left before anything is allocated, the first error sticks, and
// reading on after an error yields zero values.
package pack

import (
	"encoding/binary"
	"errors"
	"math"
)

// ErrMalformed is the error of a [Reader] whose input is cut short, has bytes
// left over, or holds an impossible length.
var ErrMalformed = errors.New("malformed data")

// Writer appends values to a growing buffer. Its zero value is ready for use.
type Writer struct{ buf []byte }

// Bytes returns what was written so far.
func (w *Writer) Bytes() []byte { return w.buf }

// Raw appends b unchanged.
func (w *Writer) Raw(b []byte) { w.buf = append(w.buf, b...) }

// Uint appends an unsigned number.
func (w *Writer) Uint(v uint64) { w.buf = binary.AppendUvarint(w.buf, v) }

// Int appends a signed number.
func (w *Writer) Int(v int64) { w.buf = binary.AppendVarint(w.buf, v) }

// Bool appends a bool.
func (w *Writer) Bool(v bool) {
	if v {
		w.buf = append(w.buf, 1)
		return
	}
	w.buf = append(w.buf, 0)
}

// String appends a string with its length.
func (w *Writer) String(s string) {
	w.Uint(uint64(len(s)))
	w.buf = append(w.buf, s...)
}

// Blob appends a byte slice with its length.
func (w *Writer) Blob(b []byte) {
	w.Uint(uint64(len(b)))
	w.buf = append(w.buf, b...)
}

// Strings appends a list of strings.
func (w *Writer) Strings(list []string) {
	w.Uint(uint64(len(list)))
	for _, s := range list {
		w.String(s)
	}
}

// Reader takes values off a buffer in the order in which a [Writer] put them.
type Reader struct {
	all, buf []byte // buf is what is left of all
	text     string // all, once a string was taken
	err      error
}

// NewReader reads from b, which must not change until the reader is done.
func NewReader(b []byte) *Reader { return &Reader{all: b, buf: b} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Done returns the first error, and an error when bytes are left over.
func (r *Reader) Done() error {
	if len(r.buf) > 0 {
		r.fail()
	}
	return r.err
}

// Uint takes an unsigned number.
func (r *Reader) Uint() uint64 {
	v, n := binary.Uvarint(r.buf)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.buf = r.buf[n:]
	return v
}

// Int takes a signed number.
func (r *Reader) Int() int64 {
	v, n := binary.Varint(r.buf)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.buf = r.buf[n:]
	return v
}

// Bool takes a bool; anything but 0 and 1 is malformed.
func (r *Reader) Bool() bool {
	b := r.Raw(1)
	if len(b) == 1 && b[0] > 1 {
		r.fail()
		return false
	}
	return len(b) == 1 && b[0] == 1
}

// Raw takes n bytes, which alias the reader's buffer; nil on error.
func (r *Reader) Raw(n int) []byte {
	if n < 0 || n > len(r.buf) {
		r.fail()
		return nil
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b
}

// Count takes the length of a list of at most limit elements, each of which
// takes at least one byte.
func (r *Reader) Count(limit int) int {
	n := r.Uint()
	if n > uint64(len(r.buf)) || n > uint64(limit) {
		r.fail()
		return 0
	}
	return int(n)
}

// String takes a string. All strings of a reader share one copy of its buffer.
func (r *Reader) String() string {
	n := len(r.Raw(r.Count(math.MaxInt)))
	if n == 0 {
		return ""
	}
	if r.text == "" {
		r.text = string(r.all)
	}
	end := len(r.all) - len(r.buf)
	return r.text[end-n : end]
}

// Blob takes a copy of a byte slice, nil when it is empty.
func (r *Reader) Blob() []byte {
	b := r.Raw(r.Count(math.MaxInt))
	if len(b) == 0 {
		return nil
	}
	return append([]byte(nil), b...)
}

// Strings takes a list of at most limit strings, nil when it is empty.
func (r *Reader) Strings(limit int) []string {
	n := r.Count(limit)
	if n == 0 {
		return nil
	}
	list := make([]string, 0, n)
	for range n {
		list = append(list, r.String())
	}
	if r.err != nil {
		return nil
	}
	return list
}

func (r *Reader) fail() {
	if r.err == nil {
		r.err = ErrMalformed
	}
	r.buf = nil
}
