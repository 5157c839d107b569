package layer

import "testing"

func TestMediaType(t *testing.T) {
	const prefix = "application/vnd.oci.image.layer.v1.tar"
	for head, want := range map[string]string{
		"\x1f\x8b\x08\x00\x00\x00": "+gzip", "\x1f\x8b": "+gzip",
		"\x28\xb5\x2f\xfd\x00\x00": "+zstd", "\x50\x2a\x4d\x18\x05\x00": "+zstd", "\x5f\x2a\x4d\x18": "+zstd",
		"\x28\xb5\x2f": "", "\x50\x2a\x4d\x19\x00\x00": "", "etc/pa": "", "": "",
	} {
		if got := MediaType([]byte(head)); got != prefix+want {
			t.Errorf("%q: %s, want %s%s", head, got, prefix, want)
		}
	}
}
