//go:build cgo

package spawn

// wholly: a child can unmap all memory but its code. With libc in the process
// it cannot: the kernel kills a thread whose registered rseq area is unmapped.
// crisp is built without cgo; programs with the race detector, which are tests,
// unmap only the heap.
const wholly = false
