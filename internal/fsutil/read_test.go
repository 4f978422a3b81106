package fsutil_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/fsutil"
)

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(file, []byte("12345"), 0o600), os.Symlink("file", link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	in := func(path string, most int64) ([]byte, error) {
		return fsutil.ReadFileIn(root, filepath.Base(path), most)
	}
	for _, c := range []struct {
		what string
		read func(string, int64) ([]byte, error)
		path string
		most int64
		want error
	}{
		{"as large as may be", fsutil.ReadFile, file, 5, nil},
		{"too large", fsutil.ReadFile, file, 4, fsutil.ErrTooLarge},
		{"a link", fsutil.ReadFile, link, 5, nil},
		{"a pipe", fsutil.ReadFile, pipe, 5, fsutil.ErrNotRegular},
		{"a directory", fsutil.ReadFile, dir, 5, fsutil.ErrNotRegular},
		{"nothing", fsutil.ReadFile, filepath.Join(dir, "no"), 5, fs.ErrNotExist},
		{"a file, no link", fsutil.ReadFileNoFollow, file, 5, nil},
		{"a link that may not be", fsutil.ReadFileNoFollow, link, 5, unix.ELOOP},
		{"in a directory", in, file, 5, nil},
		{"a pipe in a directory", in, pipe, 5, fsutil.ErrNotRegular},
		{"a link in a directory", in, link, 5, nil},
	} {
		text, err := c.read(c.path, c.most)
		if !errors.Is(err, c.want) || c.want == nil && string(text) != "12345" {
			t.Errorf("%s: %q, %v", c.what, text, err)
		}
	}
}
