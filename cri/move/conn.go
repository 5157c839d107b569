package move

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"crisp/runtime/untrusted"
)

// Kinds of frames. A frame is its kind, the length of its content as four bytes in big
// endian, and the content.
const (
	kindMessage byte = 'm' // a message in JSON
	kindData    byte = 'd' // a part of a stream
	kindKnown   byte = 'k' // a part of a stream that is among the blocks sent ahead: which, see [Known]
	kindEnd     byte = 'e' // the end of a stream: nothing, or why it is not whole
	// KindReport is for the program that carries the bytes, and ends the conversation. See
	// [Relay].
	KindReport byte = 'r'
)

const (
	headerSize = 5
	// maxMessage bounds a message, maxMessageValues the values in it, and maxData a part of
	// a stream in bytes.
	maxMessage       = 16 << 20
	maxMessageValues = 1 << 19
	maxData          = 256 << 10
	maxReason        = 4 << 10
	reportTime       = 10 * time.Second
)

var (
	// ErrLost means that the connection to the other node broke, or that what came is none
	// of this protocol.
	ErrLost = errors.New("connection to the other node lost")
	// ErrRefused means that the other node has refused or failed; it wraps what it said.
	ErrRefused = errors.New("the other node refused")
)

// Conn is one end of a conversation. Its methods are for one goroutine at a time.
type Conn struct {
	rw Stream
	r  *bufio.Reader
	w  *bufio.Writer
}

// Stream is what a [Conn] needs of a connection.
type Stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// NewConn makes a conversation of a stream of bytes.
func NewConn(rw Stream) *Conn {
	return &Conn{rw, bufio.NewReaderSize(rw, maxData), bufio.NewWriterSize(rw, maxData+headerSize)}
}

// Close ends the conversation, also for a method that is under way.
func (c *Conn) Close() error { return c.rw.Close() }

// While has methods fail when ctx ends, until the returned function is called.
func (c *Conn) While(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.rw.SetDeadline(time.Unix(1, 0)) }) // of a closed one: they fail anyway
}

func lost(err error) error { return fmt.Errorf("%w: %w", ErrLost, err) }

func (c *Conn) writeFrame(kind byte, content []byte) error {
	var header [headerSize]byte
	header[0] = kind
	binary.BigEndian.PutUint32(header[1:], uint32(len(content)))
	if _, err := c.w.Write(header[:]); err != nil {
		return lost(err)
	}
	if _, err := c.w.Write(content); err != nil {
		return lost(err)
	}
	return nil
}

// readHeader reads a header, whose content is within the bounds of its kind.
func readHeader(r io.Reader) (kind byte, size uint32, err error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, 0, lost(err)
	}
	limits := map[byte]uint32{kindMessage: maxMessage, kindData: maxData, kindKnown: knownSize, kindEnd: maxReason, KindReport: maxMessage}
	kind, size = header[0], binary.BigEndian.Uint32(header[1:])
	if most, ok := limits[kind]; !ok || size > most {
		return 0, 0, lost(fmt.Errorf("no frame is of kind %q with %d bytes", kind, size))
	}
	return kind, size, nil
}

// readContent reads what follows a header, and holds no more than has come.
func readContent(r io.Reader, size uint32) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err == nil && len(content) < int(size) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, lost(err)
	}
	return content, nil
}

// Send sends a message.
func (c *Conn) Send(m Message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message to the other node: %w", err)
	}
	if len(text) > maxMessage {
		return fmt.Errorf("encode message to the other node: it has %d bytes, and may have %d", len(text), maxMessage)
	}
	if err := c.writeFrame(kindMessage, text); err != nil {
		return err
	}
	if err := c.w.Flush(); err != nil {
		return lost(err)
	}
	return nil
}

// Receive receives a message of one of some types. One that says why the other node has
// failed is [ErrRefused], all others are [ErrLost].
func (c *Conn) Receive(want ...Type) (m Message, err error) {
	kind, size, err := readHeader(c.r)
	if err != nil {
		return m, err
	}
	if kind != kindMessage {
		return m, lost(fmt.Errorf("a frame of kind %q, and a message was expected", kind))
	}
	text, err := readContent(c.r, size)
	if err != nil {
		return m, err
	}

	if _, err := untrusted.CountValues(bytes.NewReader(text), maxMessageValues); err != nil {
		return m, lost(err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, lost(err)
	}
	if m.Type == Failed {
		return m, fmt.Errorf("%w: %s", ErrRefused, untrusted.Of(m.Reason).Message(maxReason))
	}
	if !slices.Contains(want, m.Type) {
		return m, lost(fmt.Errorf("it said %.20q, and %q was expected", m.Type, want))
	}
	return m, nil
}

// Stream sends what write writes, and whether it is whole. An error of write is returned
// as it is.
func (c *Conn) Stream(write func(io.Writer) error) error { return c.stream(chunks{c}, write) }

// framer writes frames, of which it may hold the last one back.
type framer interface {
	io.Writer
	flush() error
}

// stream has write write frames through w.
func (c *Conn) stream(w framer, write func(io.Writer) error) error {
	werr := write(w)
	if ferr := w.flush(); werr == nil {
		werr = ferr
	}

	if errors.Is(werr, ErrLost) {
		return werr
	}
	var reason []byte
	if werr != nil {
		reason = []byte(werr.Error())
		reason = reason[:min(len(reason), maxReason)]
	}
	if err := c.writeFrame(kindEnd, reason); err != nil {
		return errors.Join(werr, err)
	}
	if err := c.w.Flush(); err != nil {
		return errors.Join(werr, lost(err))
	}
	return werr
}

// chunks writes data frames.
type chunks struct{ c *Conn }

func (chunks) flush() error { return nil }

func (w chunks) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), maxData)]
		if err := w.c.writeFrame(kindData, part); err != nil {
			return n, err
		}
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

// Streamed has read read what the other node streams, up to its end, which it then has to
// have reached. The rest of what read leaves is read over.
func (c *Conn) Streamed(read func(io.Reader) error) error { return c.StreamedKnown(Blocks{}, read) }

// StreamedKnown is like [Conn.Streamed], of a stream that may refer to blocks.
func (c *Conn) StreamedKnown(blocks Blocks, read func(io.Reader) error) error {
	s := &stream{c: c, blocks: blocks}
	rerr := read(s)
	if errors.Is(rerr, ErrLost) || errors.Is(rerr, ErrRefused) {
		return rerr
	}
	_, err := io.Copy(io.Discard, s)
	return errors.Join(rerr, err)
}

// stream reads data frames, and such that refer to blocks.
type stream struct {
	c      *Conn
	blocks Blocks
	// run has the blocks that are being read, nil for none; rest is of a data frame.
	run  io.Reader
	rest uint32
	err  error
}

func (s *stream) Read(p []byte) (int, error) {
	for s.rest == 0 && s.run == nil && s.err == nil {
		s.next()
	}
	if s.err != nil {
		return 0, s.err
	}
	if s.run != nil {
		return s.readRun(p)
	}
	n, err := s.c.r.Read(p[:min(len(p), int(s.rest))])
	s.rest -= uint32(n)
	if err != nil {
		s.err = lost(err)
	}
	return n, s.err
}

// readRun reads of the blocks.
func (s *stream) readRun(p []byte) (int, error) {
	n, err := s.run.Read(p)
	if err == io.EOF {
		s.run = nil
	} else if err != nil {
		s.err = fmt.Errorf("read what was sent ahead: %w", err)
	}
	return n, s.err
}

// next begins the next frame.
func (s *stream) next() {
	kind, size, err := readHeader(s.c.r)
	switch {
	case err != nil:
		s.err = err
	case kind == kindData:
		s.rest = size
	case kind == kindKnown:
		s.open(size)
	case kind != kindEnd:
		s.err = lost(fmt.Errorf("a frame of kind %q in a stream", kind))
	case size == 0:
		s.err = io.EOF
	default:
		reason, err := readContent(s.c.r, size)
		s.err = errors.Join(fmt.Errorf("%w: %s", ErrRefused, untrusted.Of(string(reason)).Message(maxReason)), err)
	}
}

// open opens the blocks of a frame of this size.
func (s *stream) open(size uint32) {
	content, err := readContent(s.c.r, size)
	if err == nil && size != knownSize {
		err = lost(fmt.Errorf("a frame that refers to blocks has %d bytes", size))
	}
	if err == nil {
		if s.run, err = s.blocks.run(content); err != nil {
			err = lost(err)
		}
	}
	s.err = err
}

// Report ends a conversation with the program that carries the bytes, also one whose time is
// up, unless a frame could not be written whole.
func (c *Conn) Report(r Report) error {
	if err := c.rw.SetDeadline(time.Now().Add(reportTime)); err != nil {
		return lost(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the outcome of a move: %w", err)
	}
	if err := c.writeFrame(KindReport, text); err != nil {
		return err
	}
	if err := c.w.Flush(); err != nil {
		return lost(err)
	}
	return nil
}

// Relay carries what the daemon says in from to the other node, until the daemon's report,
// which it returns. An error of to is no reason to stop: the daemon finds out by itself.
func Relay(from io.Reader, to io.Writer) (r Report, err error) {
	in := bufio.NewReaderSize(from, maxData)
	out, sink := bufio.NewWriterSize(to, maxData), error(nil)
	buffer := make([]byte, maxData)
	for {
		kind, size, err := readHeader(in)
		if err != nil {
			return r, err
		}
		if kind == KindReport {
			_ = out.Flush() // see above
			text, err := readContent(in, size)
			if err != nil {
				return r, err
			}
			if err := json.Unmarshal(text, &r); err != nil {
				return r, fmt.Errorf("read the outcome of a move: %w", err)
			}
			return r, nil
		}

		part := buffer[:headerSize]
		part[0] = kind
		binary.BigEndian.PutUint32(part[1:], size)
		for {
			if sink == nil {
				_, sink = out.Write(part)
			}
			if size == 0 {
				break
			}
			part = buffer[:min(int(size), len(buffer))]
			if _, err := io.ReadFull(in, part); err != nil {
				return r, lost(err)
			}
			size -= uint32(len(part))
		}
		// What is written by now the daemon has flushed, or it has more to say.
		if sink == nil && in.Buffered() == 0 {
			sink = out.Flush()
		}
	}
}
