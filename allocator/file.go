package allocator

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"multihomed/internal/ownership"
)

// Suffixes of the two files that sqlite keeps beside a database in WAL mode
// (https://www.sqlite.org/walformat.html).
const (
	logSuffix   = "-wal"
	indexSuffix = "-shm"
)

// prepareFile makes sure that there is a regular file which only we and our
// group can read. sqlite follows symbolic links and gives its log the mode of
// the database, so both are settled before it sees the path.
func prepareFile(path string) error {
	if err := prepareDirectory(filepath.Dir(path)); err != nil {
		return databaseError(path, makingDirectory, err)
	}
	for _, name := range []string{path, path + logSuffix, path + indexSuffix} {
		if err := checkFile(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return databaseError(name, "opening", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o640) //nolint:gosec // the group may run status
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return databaseError(path, "creating", err)
	}
	// The mode despite the umask, and the name on disk: sqlite syncs the
	// directory for its log but not for the database.
	// Its log gets the owner of the database from sqlite (unixOpen in os_unix.c).
	err = errors.Join(f.Chmod(0o640), ownership.Adopt(f), f.Close(), syncDirectory(filepath.Dir(path)))
	return databaseError(path, "creating", err)
}

func prepareDirectory(dir string) error {
	if err := ownership.MakeDirectory(dir); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	// The directory itself may be a symbolic link (systemd's DynamicUser makes
	// it one), but then nobody else may put files there.
	if info.Mode().Perm()&0o002 != 0 {
		return &DatabaseError{Path: dir, Doing: "opening the directory", Cause: fmt.Errorf("everybody may write to it (mode %v): anyone could replace the leases; to fix: chmod o-w %s", info.Mode().Perm(), dir)}
	}
	return nil
}

// checkFile refuses anything but a regular file.
func checkFile(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &DatabaseError{Path: path, Doing: "opening", Kind: ErrForeign, Cause: fmt.Errorf("not a regular file but %v", info.Mode().Type())}
	}
	return nil
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// copyAside copies a database and its log to a new directory below scratch and
// returns the path of the copy and what removes it. sqlite cannot read a
// database in WAL mode without writing beside it, so on a full or read-only file
// system the leases are read from a copy.
func copyAside(path, scratch string) (copied string, remove func() error, err error) {
	dir, err := os.MkdirTemp(scratch, "multihomed-leases-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	copied = filepath.Join(dir, filepath.Base(path))
	err = copyFile(path, copied)
	if err == nil {
		err = copyFile(path+logSuffix, copied+logSuffix)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // Closed in an orderly way: all is in the database.
		}
	}
	if err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return copied, remove, nil
}

func copyFile(from, to string) (err error) {
	source, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
