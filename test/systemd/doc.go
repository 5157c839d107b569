// Package systemd tests the Debian package of crisp under a real systemd: that
// its units start, that a container keeps running and loses no line of its log
// whatever is done to them, and that an upgrade and a removal do not affect it.
// If SELinux is enabled, it tests that the policy confines crisp and its
// containers. It installs the package, so it runs on a disposable machine: the
// virtual one of "make vm-test".
package systemd
