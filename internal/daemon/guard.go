package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/handoff"
	"multihomed/internal/lockfile"
	"multihomed/internal/news"
	"multihomed/internal/ownership"
	"multihomed/internal/recollection"
	"multihomed/routing/reconcile"
)

const (
	// lookForUs is how often to check whether others find us, if inotify does not tell.
	lookForUs = 5 * time.Second
	// restoreEvery is the least time between two restorations of the runtime directory.
	restoreEvery = time.Second
	// mostRestored bounds the attempts while somebody keeps removing it.
	mostRestored = 100
)

// guard waits until others cannot find this process any more, because somebody removed the
// runtime directory or files in it: another process would take it for dead and work beside
// it. Then guard makes the directory and the lock again, writes the files, and returns true:
// the caller must assemble the parts again, which makes the sockets. It fails if it may not
// make the directory; RuntimeDirectory= of the unit does that at the restart.
func (s *service) guard(ctx context.Context, cfg config.Config, p *parts, h *holder) (lost bool, err error) {
	changed := watchDirectory(ctx, cfg.RuntimeDir, unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF)
	ticker := time.NewTicker(lookForUs)
	defer ticker.Stop()
	path := filepath.Join(cfg.RuntimeDir, lockfile.Name)
	for s.lock.Stands(path) && s.events.Stands() && h.stands() && s.desk.stands() {
		select {
		case <-ctx.Done():
			return false, nil
		case <-changed:
		case <-ticker.C:
		}
	}
	pause := time.NewTimer(time.Until(s.restored.Add(restoreEvery)))
	defer pause.Stop()
	select {
	case <-ctx.Done():
		return false, nil
	case <-pause.C:
	}
	s.restored = time.Now()
	s.files = func() error {
		return errors.Join(p.hooks.Restore(), p.owners.Declared.Restore(), p.bindings.Restore(), s.memory.restore())
	}
	err = inPlace(ctx, cfg, func() error { return errors.Join(s.place(ctx, cfg), s.files()) })
	if err != nil {
		if ctx.Err() != nil {
			return false, nil
		}
		return false, err
	}
	s.Logger.LogAttrs(ctx, event.LevelNotice, "runtime directory made again, because somebody removed it or files in it", slog.String("path", cfg.RuntimeDir))
	s.notify.Reloading()
	return true, nil
}

// inPlace does what needs the runtime directory, again while somebody is still removing it.
func inPlace(ctx context.Context, cfg config.Config, do func() error) error {
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	err := do()
	for tries := 1; errors.Is(err, fs.ErrNotExist) && tries < mostRestored; tries++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		err = do()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("somebody keeps removing the runtime directory %s or files in it: %w", cfg.RuntimeDir, err)
	}
	return err
}

// stayFound makes the directory, the lock, the socket and the files for the next parts if
// they are missing: somebody may have removed them while the previous parts ended.
func (s *service) stayFound(ctx context.Context, cfg config.Config) error {
	return inPlace(ctx, cfg, func() error {
		if err := s.place(ctx, cfg); err != nil {
			return err
		}
		if err := s.listen(cfg); err != nil || s.files == nil {
			return err
		}
		return s.files()
	})
}

// place makes the runtime directory and the lock in it, unless they exist.
func (s *service) place(ctx context.Context, cfg config.Config) error {
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return err
	}
	path := filepath.Join(cfg.RuntimeDir, lockfile.Name)
	if s.lock.Stands(path) {
		return nil
	}
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		// A process that took it meanwhile finds the lock of the network namespace held, and
		// gives it back.
		lock, err := lockfile.TryLock(path)
		if err == nil {
			closing(s.Logger, "lock of the removed runtime directory", s.lock.Close)
			s.lock = lock
			return nil
		}
		if _, held := errors.AsType[*lockfile.HeldError](err); !held {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// listen makes the socket for events, unless it exists.
func (s *service) listen(cfg config.Config) error {
	if s.events != nil {
		if s.events.Stands() {
			return nil
		}
		// Messages that are left are also in files, or NetworkManager knows them.
		closing(s.Logger, "socket for events", func() error {
			_, err := s.events.Close()
			return err
		})
		s.events = nil
	}
	events, err := handoff.Listen(cfg.RuntimeDir)
	if err == nil {
		s.events = events
	}
	return err
}

// A memory is the file memory.json, and keeps its content if that is removed.
type memory struct {
	file recollection.File
	mu   sync.Mutex
	last *reconcile.Recollection
}

// Recall implements [reconcile.Memory].
func (m *memory) Recall() (reconcile.Recollection, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, is := m.file.Recall(); is {
		m.last = &r
		return r, true
	}
	if m.last == nil {
		return reconcile.Recollection{}, false
	}
	return *m.last, true
}

// Keep implements [reconcile.Memory].
func (m *memory) Keep(r reconcile.Recollection) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = &r
	return m.file.Keep(r)
}

// restore writes the file if it is gone.
func (m *memory) restore() error {
	if _, is := m.file.Recall(); is {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == nil {
		return nil
	}
	return m.file.Keep(*m.last)
}

// watchDirectory returns a signal for some events of a directory (inotify(7)). Without a free
// inotify instance the signal never comes.
func watchDirectory(ctx context.Context, path string, events uint32) <-chan struct{} {
	changed := news.NewSignal()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return changed
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, events|unix.IN_ONLYDIR); err != nil {
		_ = f.Close()
		return changed
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	go func() {
		defer stop()
		buffer := make([]byte, 4<<10)
		for {
			if _, err := f.Read(buffer); err != nil {
				_ = f.Close()
				return
			}
			changed.Give()
		}
	}()
	return changed
}
