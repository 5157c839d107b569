// Package systemd tests the Debian package of crisp under a real systemd: that
// its units start, that a container runs on and loses no line of its log
// whatever is done to them, and that an upgrade and a removal leave it alone.
// Where SELinux is on, it tests that the policy confines crisp and its containers.
// It installs the package, so it runs on a machine that may be changed at will:
// the virtual one of "make vm-test".
package systemd
