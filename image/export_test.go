package image

// SetPoint has f called at the points of a pull, and of bringing it to the disk.
func SetPoint(o *Options, f func(effect string) error) { o.point = f }
