// Package lease assigns addresses to pods, in the on-disk format of the reference
// plugin host-local, so that either can continue where the other stopped.
//
// A network has a directory. A lease is a file in it that is named by the address
// and contains the owner, "ID\r\nIFNAME"; last_reserved_ip.N is the address that
// was assigned last from the range set N; lock is locked (flock) by whoever
// changes the directory.
//
// A lease is created exclusively, so an address cannot be assigned twice. It is
// not synced: a power cut ends the pods as well. A file without an owner is left
// by a process that was killed between creating and writing it, under the lock,
// and is free for the next one that holds the lock.
package lease
