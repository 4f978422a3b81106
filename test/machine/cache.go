package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

const defaultCache = "/var/cache/multihomed-test"

// cachePath is where something of that name is kept between runs.
func cachePath(name string) string {
	cache := os.Getenv(CacheEnv)
	if cache == "" {
		cache = defaultCache
	}
	return filepath.Join(cache, name)
}

// Cached returns a directory that is kept between runs, beside the roots. The first call has fill
// make its contents in another directory, which gets the name when it is complete and on disk;
// concurrent callers wait meanwhile. Afterwards it is read-only. The name should change with the
// recipe.
func Cached(ctx context.Context, name string, fill func(dir string) error) (string, error) {
	dir := cachePath(name)
	if err := cached(ctx, dir, fill); err != nil {
		return "", fmt.Errorf("making %s: %w", dir, err)
	}
	return dir, nil
}

func cached(ctx context.Context, dir string, fill func(dir string) error) (err error) {
	if isDir(dir) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("making the cache (%s sets its directory): %w", CacheEnv, err)
	}
	// The holder of the lock builds; the kernel releases it when the process ends.
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	defer lock.Close()
	if err := flock(ctx, lock); err != nil {
		return err
	}
	if isDir(dir) {
		return nil // made while this process waited
	}
	tmp := dir + ".making"
	if err := os.RemoveAll(tmp); err != nil { // of a build that was interrupted
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	// The name must not reach the disk before the contents.
	if err := syncfs(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// syncfs writes the file system of a directory to disk.
func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("writing %s to disk: %w", dir, err)
	}
	return nil
}

// flock waits for a lock on a file.
func flock(ctx context.Context, f *os.File) error {
	return lab.Eventually(ctx, func() error {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			return fmt.Errorf("waiting for who holds %s: %w", f.Name(), err)
		}
		return nil
	})
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
