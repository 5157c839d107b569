//go:build cgo

package spawn

// wholly says whether a child can give back all memory but its code. With C's
// library in the process it cannot: the kernel kills a thread that has lost
// what the library registered for it (rseq). crisp is built without; programs
// with the race detector, which are tests, give back the heap alone.
const wholly = false
