package spec

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// stored is a spec on disk. JSON strings cannot hold arbitrary bytes, so an
// environment that is not UTF-8, which the CRI allows, is stored next to the
// spec.
type stored struct {
	*specs.Spec
	RawEnv [][]byte `json:"rawEnv,omitempty"`
}

// Encode returns a spec as JSON, from which [Decode] restores it byte by byte.
func Encode(s *specs.Spec) ([]byte, error) {
	out := stored{Spec: s}
	if s.Process != nil {
		for _, kv := range s.Process.Env {
			if !utf8.ValidString(kv) {
				out.RawEnv = bytesOf(s.Process.Env)
				break
			}
		}
	}

	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	return data, nil
}

func bytesOf(list []string) [][]byte {
	var out [][]byte
	for _, s := range list {
		out = append(out, []byte(s))
	}
	return out
}

// Decode reads what [Encode] wrote.
func Decode(data []byte) (*specs.Spec, error) {
	in := stored{Spec: &specs.Spec{}}
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("decode spec: %w", err)
	}
	if len(in.RawEnv) > 0 && in.Process != nil {
		in.Process.Env = nil
		for _, kv := range in.RawEnv {
			in.Process.Env = append(in.Process.Env, string(kv))
		}
	}
	return in.Spec, nil
}
