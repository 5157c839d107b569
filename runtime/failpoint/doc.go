// Package failpoint has the points at which the crash tests kill the daemon or make it
// fail. Only a build with the tag "crash" has them; in others the functions do nothing.
package failpoint

// Between has an effect on the machine or the disk, between two failpoints.
func Between(effect string, do func() error) error {
	if err := Pass("before", effect); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return Pass("after", effect)
}
