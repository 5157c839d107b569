// Package pace gives tests more patience on machines that are slower than
// those they were written on, such as emulated ones.
package pace

import (
	"os"
	"strconv"
	"time"
)

// Scale returns d as many times over as CRISP_TIME_SCALE says. It is for
// limits on how long something may take, not for how long something must take.
func Scale(d time.Duration) time.Duration {
	factor, err := strconv.ParseFloat(os.Getenv("CRISP_TIME_SCALE"), 64)
	if err != nil || factor <= 0 {
		return d
	}
	return time.Duration(float64(d) * factor)
}
