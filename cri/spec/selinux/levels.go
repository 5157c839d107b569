package selinux

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

const (
	// sensitivity is the only one in a policy with categories alone (MCS).
	sensitivity = "s0"
	categories  = 1024
	// pairs is the number of levels of two categories.
	pairs = categories * (categories - 1) / 2
)

// Levels allocates levels to pods, each its own: with the same categories pods
// could reach each other's files and processes. The zero value is ready to use.
type Levels struct {
	mu   sync.Mutex
	held map[string]int // by level: the number of pods that have it
}

// Take allocates a level of two categories that no pod has.
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

// pair returns the level with the nth pair of categories.
func pair(n int) string {
	low := 0
	for row := categories - 1; n >= row; row-- {
		n -= row
		low++
	}
	return levelOf(low, low+1+n)
}

func levelOf(a, b int) string { return fmt.Sprintf("%s:c%d,c%d", sensitivity, a, b) }

// Hold records that a pod has a level that was chosen elsewhere; other pods may
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

// Drop releases the level of a pod that was removed.
func (l *Levels) Drop(level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[level] > 1 {
		l.held[level]--
		return
	}
	delete(l.held, level)
}
