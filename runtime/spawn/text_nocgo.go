//go:build !cgo

package spawn

// wholly says whether a child can give back all memory but its code.
const wholly = true
