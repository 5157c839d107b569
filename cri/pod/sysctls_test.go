package pod

import "testing"

// TestSetSysctl leaves a setting alone that has the value, and may not be writable.
func TestSetSysctl(t *testing.T) {
	if err := setSysctl("kernel/ostype", " Linux"); err != nil {
		t.Errorf("the value that it has: %v", err)
	}
	if err := setSysctl("kernel/ostype", "Plan 9"); err == nil {
		t.Error("another value, and no error")
	}
}
