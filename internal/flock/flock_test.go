package flock_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"multihomed/internal/flock"
)

// TestNeverRootsAlone: the service's user starts while root's dispatcher makes the lock. At no
// moment does it stand there as a file that he may not open.
func TestNeverRootsAlone(t *testing.T) {
	t.Parallel()
	const nobody = 65534
	directory := t.TempDir()
	owner := os.Geteuid()
	if owner == 0 {
		owner = nobody
		if err := os.Chown(directory, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(directory, "lock")
	done, seen := make(chan struct{}), make(chan int)
	go func() {
		times := 0
		defer func() { seen <- times }()
		for {
			select {
			case <-done:
				return
			default:
			}
			info, err := os.Lstat(path)
			if err != nil {
				continue
			}
			times++
			if s, is := info.Sys().(*syscall.Stat_t); !is || int(s.Uid) != owner || info.Mode().Perm() != 0o600 {
				t.Errorf("the lock of user %d stands there with mode %v and owner %d", owner, info.Mode(), s.Uid)
				return
			}
		}
	}()
	for range 5000 {
		f, err := flock.Open(path)
		if err != nil {
			t.Error(err)
			break
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	close(done)
	if times := <-seen; times == 0 {
		t.Error("the lock was never seen")
	}
	left, err := os.ReadDir(directory)
	if err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
