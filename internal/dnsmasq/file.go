package dnsmasq

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"

	"multihomed/internal/fsutil"
)

// A File is the servers file and the dnsmasq that reads it. It is safe for
// concurrent use.
type File struct {
	path, pidFile string
	log           *slog.Logger

	mu sync.Mutex
	// untold says that dnsmasq may not have read what is in the file.
	untold bool
	// absent says that the log has "dnsmasq is not running".
	absent bool
}

// New returns the file at path, for the dnsmasq whose pid-file is pidFile.
func New(path, pidFile string, log *slog.Logger) *File {
	// An earlier process may have written the file without telling dnsmasq.
	return &File{path: path, pidFile: pidFile, log: log, untold: true}
}

// Update writes the file if it differs, and then tells dnsmasq to read it. If that fails, the
// next Update tells it again. Servers that cannot be written are left out and named in the
// error; the others are written.
func (f *File) Update(ctx context.Context, servers []Server) error {
	text, errs := render(servers)
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(append(errs, f.update(ctx, text))...)
}

func (f *File) update(ctx context.Context, text []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("writing dnsmasq's servers to %s: %w", f.path, context.Cause(ctx))
	}
	written, err := f.write(text)
	if err != nil {
		return fmt.Errorf("writing dnsmasq's servers to %s: %w", f.path, err)
	}
	f.untold = f.untold || written
	if !f.untold {
		return nil
	}
	pid, err := hangUp(f.pidFile)
	if err != nil {
		return fmt.Errorf("telling dnsmasq to read %s: %w", f.path, err)
	}
	f.untold = false
	if pid == 0 {
		// It reads the file when it starts, after writing its pid.
		if !f.absent {
			f.absent = true
			f.log.LogAttrs(ctx, slog.LevelDebug, "dnsmasq is not running", slog.String("pid_file", f.pidFile))
		}
		return nil
	}
	f.absent = false
	f.log.LogAttrs(ctx, slog.LevelDebug, "dnsmasq told to read its servers", slog.String("path", f.path), slog.Int("pid", pid))
	return nil
}

// write writes the text and reports whether the file changed. It follows no symbolic link,
// neither out of the directory nor to another file in it.
func (f *File) write(text []byte) (_ bool, err error) {
	dir, err := os.OpenRoot(filepath.Dir(f.path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("opening its directory: %w; to fix: create it", err)
	}
	if err != nil {
		return false, fmt.Errorf("opening its directory: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	name := filepath.Base(f.path)
	if same, err := holds(dir, name, text); err != nil || same {
		return false, err
	}
	t, err := renameio.NewPendingFile(name, renameio.WithRoot(dir), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return false, fmt.Errorf("creating a temporary file: %w", err)
	}
	defer func() { err = errors.Join(err, t.Cleanup()) }()
	if _, err := t.Write(text); err != nil {
		return false, err
	}
	if err := t.CloseAtomicallyReplace(); err != nil {
		return false, err
	}
	return true, nil
}

// holds reports whether a file has exactly this text.
func holds(dir *os.Root, name string, text []byte) (bool, error) {
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("it is not a regular file (%s); to fix: remove it, or configure another path", info.Mode().Type())
	case info.Size() != int64(len(text)):
		return false, nil
	}
	have, err := fsutil.ReadFileIn(dir, name, info.Size())
	if errors.Is(err, fsutil.ErrTooLarge) {
		return false, nil // Somebody writes to it.
	}
	return err == nil && bytes.Equal(have, text), err
}
