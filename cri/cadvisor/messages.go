package cadvisor

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// kindLabel is the label by which cAdvisor recognises a pod's sandbox.
const kindLabel = "io.cri-containerd.kind"

// specType is containerd's type URL of a runtime-spec in an Any.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// States of a task; 0 means unknown, which makes cAdvisor ask again.
const (
	taskRunning = 2
	taskStopped = 3
)

// message is a protobuf message being encoded. Its methods omit zero values, as
// proto3 does.
type message []byte

func (m *message) bytes(number protowire.Number, v []byte) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, number, protowire.BytesType), v)
}

func (m *message) text(number protowire.Number, v string) {
	if v != "" {
		m.bytes(number, []byte(v))
	}
}

func (m *message) number(number protowire.Number, v uint64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, number, protowire.VarintType), v)
	}
}

// versionMessage is a VersionResponse.
func versionMessage(version string) []byte {
	var m message
	m.text(1, version)
	return m
}

// containerMessage is a GetContainerResponse.
func containerMessage(c Container) []byte {
	var m message
	m.text(1, c.ID)
	labels := map[string]string{}
	maps.Copy(labels, c.Labels)
	labels[kindLabel] = "container"

	if c.Sandbox {
		labels[kindLabel] = "sandbox"
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		var entry message
		entry.text(1, key)
		entry.text(2, labels[key])
		m.bytes(2, entry)
	}

	m.text(3, c.Image)

	var spec message
	spec.text(1, specType)
	spec.bytes(2, c.Spec)
	m.bytes(5, spec)

	var created message
	created.number(1, uint64(c.CreatedAt/1e9))
	created.number(2, uint64(c.CreatedAt%1e9))
	m.bytes(8, created)

	var answer message
	answer.bytes(1, m)
	return answer
}

// taskMessage is a GetResponse.
func taskMessage(c Container) []byte {
	var m message
	m.text(1, c.ID)
	m.text(2, c.ID)
	m.number(3, uint64(c.Pid))

	if c.Exited {
		m.number(4, taskStopped)
		m.number(9, uint64(uint32(c.ExitCode)))
	} else {
		m.number(4, taskRunning)
	}

	var answer message
	answer.bytes(1, m)
	return answer
}

// firstField returns the text of a message's first field, in which requests
// name their container.
func firstField(m []byte) (string, error) {
	var text string
	for len(m) > 0 {
		number, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			return "", fmt.Errorf("decode a field: %w", protowire.ParseError(n))
		}

		m = m[n:]

		if number == 1 && kind == protowire.BytesType {
			v, n := protowire.ConsumeBytes(m)
			if n < 0 {
				return "", fmt.Errorf("decode an ID: %w", protowire.ParseError(n))
			}
			text, m = string(v), m[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, m); n < 0 {
			return "", fmt.Errorf("decode field %d: %w", number, protowire.ParseError(n))
		}
		m = m[n:]
	}
	if text == "" {
		return "", errors.New("container ID is missing")
	}

	return text, nil
}
