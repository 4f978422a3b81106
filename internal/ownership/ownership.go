// Package ownership lets root work in directories that belong to the service's
// user: what root creates there must be that user's, or the service could not
// open it.
package ownership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// MakeDirectory makes a directory, with those above it, and gives it to the owner of
// the one above.
func MakeDirectory(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // status is for everybody
		return fmt.Errorf("creating a directory: %w", err)
	}
	err := os.Mkdir(path, 0o755) //nolint:gosec // as above
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("creating a directory: %w", err)
	}
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("creating a directory: %w", err)
	}
	return errors.Join(Adopt(d), d.Close())
}

// Adopt gives what was just created to the owner of the directory it is in. It
// does nothing unless this is root.
func Adopt(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return fmt.Errorf("giving %s to the service: %w", f.Name(), err)
	}
	owner, is := info.Sys().(*syscall.Stat_t)
	if !is || owner.Uid == 0 {
		return nil
	}
	if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return fmt.Errorf("giving %s to the service: %w", f.Name(), err)
	}
	return nil
}
