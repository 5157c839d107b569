package audit

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"crisp/runtime/untrusted"
)

// Calls that are audited.
const (
	Exec        = "exec"
	ExecSync    = "execsync"
	Attach      = "attach"
	PortForward = "portforward"
	// Start is no call: from here on there are lines. The end of a call that has
	// begun before, and has no other line, is unknown.
	Start = "start"
)

// Results of a call.
const (
	resultBegin = "begin" // there is none yet
	resultOK    = "ok"
	resultExit  = "exit" // of a command, with a code other than 0
	resultError = "error"
)

// Bounds of the text in a line, in bytes: a whole command, one of its arguments, and
// an error.
const (
	maxCommand  = 16 << 10
	maxArgument = 4 << 10
	maxError    = 1 << 10
)

// Record is a line of the log.
type Record struct {
	// Time is that of the call's end or, if the result is "begin", of its beginning.
	Time time.Time `json:"time"`
	Call string    `json:"call"`
	// Session is the same in both lines of a call, and in no others.
	Session string `json:"session,omitempty"`

	// Caller is who asked for it on the socket, nil if the kernel does not say, and
	// Client the address of the one who then connected for the data.
	Caller *Caller `json:"caller,omitempty"`
	Client string  `json:"client,omitempty"`

	Namespace   string `json:"namespace,omitempty"`
	Pod         string `json:"pod,omitempty"`
	PodID       string `json:"podID,omitempty"`
	Container   string `json:"container,omitempty"`
	ContainerID string `json:"containerID,omitempty"`

	// Command is what was run, with unprintable text escaped, CommandCut says that
	// it was longer.
	Command    []string `json:"command,omitempty"`
	CommandCut bool     `json:"commandCut,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	Stdin      bool     `json:"stdin,omitempty"`
	Port       int32    `json:"port,omitempty"`

	Result   string  `json:"result"`
	ExitCode *int    `json:"exitCode,omitempty"`
	Error    string  `json:"error,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	// Repeats is how many calls since the last such line were the same as this one.
	Repeats int `json:"repeats,omitempty"`
}

// command sets what is run.
func (r *Record) command(args []string) {
	left := maxCommand
	for _, a := range args {
		text := untrusted.Of(a).Name(min(maxArgument, left))
		r.CommandCut = r.CommandCut || len(text) >= min(maxArgument, left)
		r.Command = append(r.Command, text)
		if left -= len(text) + 1; left <= 0 {
			r.CommandCut = r.CommandCut || len(r.Command) < len(args)
			return
		}
	}
}

// end sets how it ended.
func (r *Record) end(code int, err error, began, now time.Time) {
	r.Time, r.Seconds = now.UTC(), now.Sub(began).Round(time.Microsecond).Seconds()
	switch {
	case err != nil:
		r.Result, r.Error = resultError, untrusted.Of(err.Error()).Name(maxError)
	case code != 0:
		r.Result, r.ExitCode = resultExit, &code
	default:
		r.Result = resultOK
	}
}

// often reports whether such calls come in numbers: kubelet's probes, and the
// connections of one session.
func (r *Record) often() bool { return r.Call == ExecSync || r.Call == PortForward }

// likeness is equal for records that differ only in their time and in what a container
// decides: the exit code of a failed command, and the text of an error.
func (r *Record) likeness() [sha256.Size]byte {
	same := *r
	same.Time, same.Seconds, same.Repeats, same.Client, same.Session = time.Time{}, 0, 0, "", ""
	same.ExitCode, same.Error = nil, ""
	data, err := json.Marshal(same)
	if err != nil {
		data = fmt.Append(nil, same) // nothing in it cannot be encoded
	}
	return sha256.Sum256(data)
}

// line is the record as a line of JSON.
func (r *Record) line() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a line of the audit log: %w", err)
	}
	return append(data, '\n'), nil
}
