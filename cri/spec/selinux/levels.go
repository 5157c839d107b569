package selinux

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

const (
	// sensitivity is the only one that a policy without secrecy has.
	sensitivity = "s0"
	categories  = 1024
	// pairs is how many levels of two categories there are.
	pairs = categories * (categories - 1) / 2
)

// Levels knows which levels pods have, so that no pod is given another's: with
// the same categories pods could reach each other's files and processes. The
// zero value is ready for use.
type Levels struct {
	mu   sync.Mutex
	held map[string]int // how many pods have it
}

// Take returns a level of two categories that no pod has, and holds it.
func (l *Levels) Take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := rand.IntN(pairs)
	level := pair(first)
	for n := 1; l.held[level] > 0 && n < pairs; n++ {
		level = pair((first + n) % pairs)
	}
	l.add(level)
	return level
}

// pair is the level of the nth pair of categories.
func pair(n int) string {
	low := 0
	for row := categories - 1; n >= row; row-- {
		n -= row
		low++
	}
	return levelOf(low, low+1+n)
}

func levelOf(a, b int) string { return fmt.Sprintf("%s:c%d,c%d", sensitivity, a, b) }

// Hold notes that a pod has a level that was chosen elsewhere; other pods may
// have the same.
func (l *Levels) Hold(level string) {
	if level == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(level)
}

func (l *Levels) add(level string) {
	if l.held == nil {
		l.held = map[string]int{}
	}
	l.held[level]++
}

// Drop notes that a pod with a level is gone.
func (l *Levels) Drop(level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[level] > 1 {
		l.held[level]--
		return
	}
	delete(l.held, level)
}
