// Package packages tests the packages of "make packages": that they hold the
// same, whatever their form and processor, and what their scripts do on
// installation, upgrade and removal. Package test/systemd has the Debian package
// do it under a systemd that is not played.
package packages
