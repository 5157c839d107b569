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

// maxField is the maximum length of a field that had to be made valid.
const maxField = 1 << 20

// Codec makes the server's responses valid UTF-8, which protobuf requires: a
// single invalid string from one container would fail a response about all
// pods. Text from containers is made valid where it enters, by package
// untrusted; the codec is the second line of defence, and costs nothing while
// it is not needed.
func Codec() grpc.ServerOption {
	return grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(protocodec.Name)})
}

type codec struct{ encoding.CodecV2 }

// Marshal encodes a response.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := c.CodecV2.Marshal(v)
	if err == nil {
		return out, nil
	}
	response, ok := v.(proto.Message)
	if !ok {
		return nil, err
	}
	klog.ErrorS(err, "Replaced invalid UTF-8 in a response", "message", response.ProtoReflect().Descriptor().FullName())
	// The response may share memory with what others are reading.
	response = proto.Clone(response)
	makeValid(response.ProtoReflect())
	return c.CodecV2.Marshal(response)
}

// makeValid replaces invalid UTF-8 in all fields of a message.
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

// validMap makes the keys and values of a map valid. Keys stay distinct.
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

// validValue returns the replacement of a value, if it has to be replaced.
// Messages are changed in place.
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
