package image

// SetFailpoint makes a service call f at the failpoints of pulls and syncs.
func SetFailpoint(o *Options, f func(effect string) error) { o.failpoint = f }
