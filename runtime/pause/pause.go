package pause

import (
	"encoding/binary"
	"fmt"
	"os"

	"crisp/runtime/sealed"
)

const (
	base       = 0x400000
	headerSize = 64
	phdrSize   = 56
)

// Image returns the program for the running architecture.
func Image() []byte { return image(machine, code()) }

// image wraps machine code in an ELF file with one readable, executable segment.
func image(machine uint16, code []byte) []byte {
	size := uint64(headerSize + phdrSize + len(code))
	le := binary.LittleEndian
	b := make([]byte, 0, size)
	b = append(b, "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+headerSize+phdrSize) // entry
	b = le.AppendUint64(b, headerSize)               // program headers
	b = le.AppendUint64(b, 0)                        // no sections
	b = le.AppendUint32(b, 0)                        // flags
	for _, v := range []uint16{headerSize, phdrSize, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}

	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable, executable
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}

	return append(b, code...)
}

// Open returns the program in a sealed memory file, to be run by execveat
// with an empty path.
func Open() (*os.File, error) {
	f, err := sealed.New("pause", func(f *os.File) error {
		_, err := f.Write(Image())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open pause program: %w", err)
	}
	return f, nil
}
