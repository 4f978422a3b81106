package ownership_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/ownership"
)

const service = 997

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants wants a mode and an owner.
func wants(t *testing.T, path string, mode fs.FileMode, uid uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	if s, is := info.Sys().(*syscall.Stat_t); !is || s.Uid != uid || info.Mode() != mode {
		t.Errorf("%s is %v of user %d, want %v of %d", path, info.Mode(), s.Uid, mode, uid)
	}
}

// TestUmask: what root makes is the service's to read, whatever root's umask.
func TestUmask(t *testing.T) {
	for _, umask := range []int{0, 0o027, 0o077, 0o777} {
		top := t.TempDir()
		state := filepath.Join(top, "state")
		must(t, os.Mkdir(state, 0o755))
		must(t, os.Chown(state, service, service))
		before := unix.Umask(umask)
		must(t, ownership.MakeDirectory(filepath.Join(state, "a", "b")))
		must(t, ownership.MakeDirectory(filepath.Join(top, "run"), filepath.Join(top, "nothing"), state))
		must(t, ownership.MakeDirectory(filepath.Join(top, "roots")))
		must(t, ownership.WriteFile(filepath.Join(state, "f"), []byte("x"), 0o644))
		root, err := os.OpenRoot(filepath.Join(top, "run"))
		must(t, err)
		must(t, ownership.WriteFileIn(root, "g", []byte("x"), 0o644))
		must(t, root.Close())
		unix.Umask(before)
		for _, d := range []string{"state/a", "state/a/b", "run"} {
			wants(t, filepath.Join(top, d), fs.ModeDir|0o755, service)
		}
		wants(t, filepath.Join(top, "roots"), fs.ModeDir|0o755, 0)
		wants(t, filepath.Join(state, "f"), 0o644, service)
		wants(t, filepath.Join(top, "run", "g"), 0o644, service)
	}
}

// TestMended: what was made otherwise is put right by who writes next, but the directory
// that an administrator made is his.
func TestMended(t *testing.T) {
	top := t.TempDir()
	state, inside, file := filepath.Join(top, "state"), filepath.Join(top, "state", "hooks"), filepath.Join(top, "state", "f")
	must(t, os.MkdirAll(inside, 0o700))
	must(t, os.Chmod(state, 0o750))
	must(t, os.Chown(state, service, service))
	must(t, os.WriteFile(file, nil, 0o600))
	if ownership.Fits(file, 0o644) {
		t.Error("it is root's alone")
	}
	must(t, ownership.MakeDirectory(state))
	must(t, ownership.MakeDirectory(inside))
	must(t, ownership.WriteFile(file, nil, 0o644))
	wants(t, state, fs.ModeDir|0o750, service)
	wants(t, inside, fs.ModeDir|0o755, service)
	wants(t, file, 0o644, service)
	if !ownership.Fits(file, 0o644) || !ownership.Fits(filepath.Join(state, "none"), 0o644) {
		t.Error("it fits")
	}
	// No link leads root elsewhere.
	must(t, os.Symlink(top, filepath.Join(state, "link")))
	must(t, ownership.MakeDirectory(filepath.Join(state, "link")))
	wants(t, top, fs.ModeDir|0o755, 0)
}
