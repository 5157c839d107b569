//go:build !cgo

package spawn

// wholly: a child can unmap all memory but its code.
const wholly = true
