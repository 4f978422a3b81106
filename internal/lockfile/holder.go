package lockfile

import "multihomed/internal/flock"

// Holder returns the process that holds a lock, 0 if it is unknown, and whether one does.
func Holder(path string) (pid int, held bool, err error) { return flock.Holder(path) }
