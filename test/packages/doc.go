// Package packages tests the packages of "make packages": that they contain the
// same files, whatever their format and architecture, and what their scripts do
// on installation, upgrade and removal. Package test/systemd does so with the
// Debian package under a real systemd.
package packages
