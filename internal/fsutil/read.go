// Package fsutil reads files that somebody else may have made or replaced. It reads no more
// than a bound, and only regular files, so that no pipe or device blocks the reader.
package fsutil

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Errors of the readers, wrapped.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrTooLarge   = errors.New("larger than what is read")
)

// Flags that the readers open files with (open(2)).
const flags = os.O_RDONLY | unix.O_NONBLOCK

// ReadFile reads a file of at most so many bytes. It follows symbolic links.
func ReadFile(path string, most int64) ([]byte, error) {
	return read(os.OpenFile(path, flags, 0))(most)
}

// ReadFileNoFollow is ReadFile for a path that must not be a symbolic link: the error is
// ELOOP then.
func ReadFileNoFollow(path string, most int64) ([]byte, error) {
	return read(os.OpenFile(path, flags|unix.O_NOFOLLOW, 0))(most)
}

// ReadFileIn is ReadFile for a name inside a directory that is open: no symbolic link leads
// out of it.
func ReadFileIn(directory *os.Root, name string, most int64) ([]byte, error) {
	return read(directory.OpenFile(name, flags, 0))(most)
}

// OpenDirectoryIn opens a directory inside another one. No symbolic link leads out of either:
// the service's user owns them, and root works in them.
func OpenDirectoryIn(parent, name string) (*os.Root, error) {
	above, err := os.OpenRoot(parent)
	if err != nil {
		return nil, err
	}
	directory, err := above.OpenRoot(name)
	return directory, errors.Join(err, above.Close())
}

// read reads what was opened, and closes it.
func read(f *os.File, err error) func(most int64) ([]byte, error) {
	return func(most int64) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		data, err := Read(f, most)
		return data, errors.Join(err, f.Close())
	}
}

// Read reads an open file from its beginning. The file was opened with O_NONBLOCK, or is
// known to be regular.
func Read(f *os.File, most int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %w", f.Name(), ErrNotRegular)
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("%s is %w, %d bytes", f.Name(), ErrTooLarge, most)
	}
	return data, nil
}
