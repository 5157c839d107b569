package cri

import (
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/klog/v2"

	"crisp/runtime/untrusted"

	protocodec "google.golang.org/grpc/encoding/proto"
)

// maxField is how long a field may be that had to be made valid.
const maxField = 1 << 20

// Codec makes the server's answers valid UTF-8, which messages must be: one
// text of a container's that is not would fail the answer about all pods. What
// comes from containers is made valid where it enters, by package untrusted;
// this holds if that is forgotten somewhere, and costs nothing if not.
func Codec() grpc.ServerOption {
	return grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(protocodec.Name)})
}

type codec struct{ encoding.CodecV2 }

// Marshal encodes an answer.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := c.CodecV2.Marshal(v)
	if err == nil {
		return out, nil
	}
	answer, ok := v.(proto.Message)
	if !ok {
		return nil, err
	}
	klog.ErrorS(err, "An answer has text that is not UTF-8, which is replaced", "message", answer.ProtoReflect().Descriptor().FullName())
	// Others may be reading what the answer is made of.
	answer = proto.Clone(answer)
	makeValid(answer.ProtoReflect())
	return c.CodecV2.Marshal(answer)
}

// makeValid replaces what is not UTF-8 in all fields of a message.
func makeValid(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			validMap(fd, v.Map())
		case fd.IsList():
			list := v.List()
			for i := range list.Len() {
				if valid, changed := validValue(fd, list.Get(i)); changed {
					list.Set(i, valid)
				}
			}
		default:
			if valid, changed := validValue(fd, v); changed {
				m.Set(fd, valid)
			}
		}
		return true
	})
}

// validMap makes the keys and values of a map valid. Keys stay different.
func validMap(fd protoreflect.FieldDescriptor, m protoreflect.Map) {
	replaced := map[string]protoreflect.Value{}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		valid, changed := validValue(fd.MapValue(), v)
		if fd.MapKey().Kind() == protoreflect.StringKind && !utf8.ValidString(k.String()) {
			m.Clear(k)
			replaced[untrusted.Of(k.String()).Name(maxField)] = valid
		} else if changed {
			m.Set(k, valid)
		}
		return true
	})

	for k, v := range replaced {
		m.Set(protoreflect.ValueOfString(k).MapKey(), v)
	}
}

// validValue returns what takes the place of a value, if it has to change as a
// whole. Messages are changed in place.
func validValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) (_ protoreflect.Value, changed bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !utf8.ValidString(v.String()) {
			return protoreflect.ValueOfString(untrusted.Of(v.String()).Text(maxField)), true
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		makeValid(v.Message())
	}
	return v, false
}
