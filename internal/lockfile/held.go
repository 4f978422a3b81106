package lockfile

import "multihomed/internal/flock"

// Held reports whether some process holds the lock.
func Held(path string) (bool, error) {
	_, held, err := flock.Holder(path)
	return held, err
}

// Holder is Held with the process that holds the lock, 0 if it cannot be told.
func Holder(path string) (pid int, held bool, err error) { return flock.Holder(path) }
