// Package pace extends the timeouts of tests on machines that are slower than
// those they were written on, such as emulated ones.
package pace

import (
	"os"
	"strconv"
	"time"
)

// Scale returns d multiplied by CRISP_TIME_SCALE. It is for limits on how long
// something may take, not for how long something must take.
func Scale(d time.Duration) time.Duration {
	return time.Duration(float64(d) * factor())
}

// Load returns the number of load generators that corresponds to n of them on a
// fast machine, but at least a fifth: the tested code has its own timeouts,
// which do not scale.
func Load(n int) int {
	return max(int(float64(n)/max(1, factor())), n/5)
}

func factor() float64 {
	f, err := strconv.ParseFloat(os.Getenv("CRISP_TIME_SCALE"), 64)
	if err != nil || f <= 0 {
		return 1
	}
	return f
}
