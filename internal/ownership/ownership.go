// Package ownership lets root work in directories of the service's user: it gives that user
// what root creates there, or the service could not open it. The umask does not count:
// hardened hosts have 077, and the service could not read such files.
package ownership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// directoryMode lets everybody read: status is for everybody.
const directoryMode fs.FileMode = 0o755

// MakeDirectory makes a directory, with those above it, and gives each to the owner of
// the one above. Where that is root, it goes to the owner of the first of like that
// exists and is not root's: /run/multihomed is that of whom /var/lib/multihomed is. A
// directory that exists inside one of the service's, as a stricter umask left it, is
// put right; one that stands elsewhere is its administrator's.
func MakeDirectory(path string, like ...string) error {
	above := filepath.Dir(path)
	if _, err := os.Stat(above); errors.Is(err, fs.ErrNotExist) {
		if err := MakeDirectory(above); err != nil {
			return err
		}
	}
	doing := func(err error) error { return fmt.Errorf("creating a directory: %w", err) }
	err := os.Mkdir(path, directoryMode)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return doing(err)
	}
	owner, owned := ownerOf(above)
	if !made && (os.Geteuid() != 0 || !owned) {
		return nil
	}
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if !made && (errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)) {
		return nil // Its use will report the error.
	}
	if err != nil {
		return doing(err)
	}
	for _, other := range like {
		if made && !owned {
			owner, owned = ownerOf(other)
		}
	}
	return errors.Join(adjust(d, directoryMode, owner, owned), d.Close())
}

type owner struct{ uid, gid uint32 }

// ownerOf returns the owner of a directory, false if that is root or not known.
func ownerOf(path string) (owner, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return owner{}, false
	}
	s, is := info.Sys().(*syscall.Stat_t)
	if !is || s.Uid == 0 {
		return owner{}, false
	}
	return owner{s.Uid, s.Gid}, true
}

// adjust sets the mode of a file whatever the umask is, and its owner if this process is root.
func adjust(f *os.File, mode fs.FileMode, to owner, owned bool) error {
	info, err := f.Stat()
	if err == nil && info.Mode().Perm() != mode {
		err = f.Chmod(mode)
	}
	if err == nil && owned && os.Geteuid() == 0 {
		err = f.Chown(int(to.uid), int(to.gid))
	}
	if err != nil {
		return fmt.Errorf("giving %s to the service: %w", f.Name(), err)
	}
	return nil
}

// Adopt gives what was just created to the owner of the directory it is in. It
// does nothing unless this is root.
func Adopt(f *os.File) error {
	to, owned := ownerOf(filepath.Dir(f.Name()))
	if !owned || os.Geteuid() != 0 {
		return nil
	}
	if err := f.Chown(int(to.uid), int(to.gid)); err != nil {
		return fmt.Errorf("giving %s to the service: %w", f.Name(), err)
	}
	return nil
}

// WriteFile replaces a file at once and durably, or not at all. It has the mode and the
// owner of its directory afterwards, whatever the umask is and whatever the file before
// it had.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	directory := filepath.Dir(path)
	to, owned := ownerOf(directory)
	return write(path, data, mode, to, owned, renameio.WithTempDir(directory))
}

// WriteFileIn is WriteFile for a name inside a directory that is open: no link that
// somebody else put there leads to another place.
func WriteFileIn(directory *os.Root, name string, data []byte, mode fs.FileMode) error {
	info, err := directory.Stat(".")
	if err != nil {
		return fmt.Errorf("looking at %s: %w", directory.Name(), err)
	}
	to, owned := owner{}, false
	if s, is := info.Sys().(*syscall.Stat_t); is && s.Uid != 0 {
		to, owned = owner{s.Uid, s.Gid}, true
	}
	return write(name, data, mode, to, owned, renameio.WithRoot(directory))
}

func write(path string, data []byte, mode fs.FileMode, to owner, owned bool, where renameio.Option) error {
	f, err := renameio.NewPendingFile(path, where, renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = adjust(f.File, mode, to, owned)
	}
	if err == nil {
		err = f.CloseAtomicallyReplace()
	}
	if err != nil {
		return errors.Join(err, f.Cleanup())
	}
	return nil
}

// Fits reports whether a file has the mode and the owner that WriteFile gives it.
func Fits(path string, mode fs.FileMode) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	s, is := info.Sys().(*syscall.Stat_t)
	to, owned := ownerOf(filepath.Dir(path))
	return is && info.Mode().IsRegular() && info.Mode().Perm() == mode && (!owned || s.Uid == to.uid)
}
