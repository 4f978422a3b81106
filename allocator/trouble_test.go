package allocator_test

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/allocator"
)

// raw opens a database behind the allocator's back.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func execute(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// seeded is a database with three leases, closed in an orderly way.
func seeded(t *testing.T) allocator.Options {
	t.Helper()
	o := options(t, 10000, 10009)
	seed(t, o)
	return o
}

func seed(t *testing.T, o allocator.Options) {
	t.Helper()
	a, err := allocator.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context(), keys(0, 3), nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

// refused checks the kind of an error and that it says where and how to fix it.
func refused(t *testing.T, err, kind error, path string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want %v", err, kind)
		return
	}
	if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "to fix:") {
		t.Errorf("error %q does not name %s or the cure", err, path)
	}
}

func TestDamagedOrForeignFileIsRefusedAndKept(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		damage func(t *testing.T, path string)
		kind   error
	}{
		"garbage": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 500)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrForeign},
		"damaged pages": {func(t *testing.T, path string) {
			t.Helper()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := 4096; i < len(data); i++ {
				data[i] = 0x5a
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrCorrupt},
		"cut short": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Truncate(path, 5000); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrCorrupt},
		"a row without meaning": {func(t *testing.T, path string) {
			t.Helper()
			execute(t, raw(t, path), "UPDATE tables SET subject = 'somewhere' WHERE number = 10001")
		}, allocator.ErrCorrupt},
		"a host address as prefix": {func(t *testing.T, path string) {
			t.Helper()
			execute(t, raw(t, path), "UPDATE tables SET subject = '10.0.0.7/24', family = 2 WHERE number = 10000")
		}, allocator.ErrCorrupt},
		"another program's": {func(t *testing.T, path string) {
			t.Helper()
			execute(t, raw(t, path), "PRAGMA application_id = 7")
		}, allocator.ErrForeign},
		"newer": {func(t *testing.T, path string) {
			t.Helper()
			execute(t, raw(t, path), "PRAGMA user_version = 99")
		}, allocator.ErrNewer},
		"a directory": {func(t *testing.T, path string) {
			t.Helper()
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrForeign},
		"a symbolic link": {func(t *testing.T, path string) {
			t.Helper()
			if err := errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path)); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrForeign},
		"a symbolic link as log": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Symlink("/etc/passwd", path+"-wal"); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrForeign},
		"a pipe": {func(t *testing.T, path string) {
			t.Helper()
			if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, allocator.ErrForeign},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := seeded(t)
			test.damage(t, o.Path)
			before, readable := os.ReadFile, false
			var content []byte
			if info, err := os.Stat(o.Path); err == nil && info.Mode().IsRegular() {
				var err error
				if content, err = before(o.Path); err != nil {
					t.Fatal(err)
				}
				readable = true
			}
			_, err := allocator.Open(t.Context(), o)
			refused(t, err, test.kind, o.Path)
			_, err = allocator.OpenReadOnly(t.Context(), o)
			if name != "a symbolic link as log" {
				refused(t, err, test.kind, o.Path)
			}
			if readable {
				if after, err := os.ReadFile(o.Path); err != nil || string(after) != string(content) {
					t.Errorf("the refused file was changed (%v)", err)
				}
			}
		})
	}
}

func TestNewFileOfSomebodyElseIsFilled(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	if err := errors.Join(os.MkdirAll(filepath.Dir(o.Path), 0o750), os.WriteFile(o.Path, nil, 0o640)); err != nil {
		t.Fatal(err)
	}
	// An empty file is what a crash in the first millisecond leaves.
	if n := acquire(t, open(t, o), key(0)); n != 10000 {
		t.Errorf("got %d", n)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	acquire(t, open(t, o), key(0))
	for path, want := range map[string]fs.FileMode{
		filepath.Dir(o.Path): 0o755 | fs.ModeDir, o.Path: 0o640, o.Path + "-wal": 0o640, o.Path + "-shm": 0o640,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
	dir := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	o.Path = filepath.Join(dir, "leases.db")
	if _, err := allocator.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("error %v: a directory where anyone may replace the file was accepted", err)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	a := open(t, o)
	other := raw(t, o.Path)
	execute(t, other, "BEGIN IMMEDIATE")
	got, err := a.Acquire(t.Context(), keys(0, 4), nil)
	refused(t, err, allocator.ErrLocked, o.Path)
	if len(got) != 3 {
		t.Errorf("got %v: the three standing leases need no disk", got)
	}
	refused(t, a.Fault(), allocator.ErrLocked, o.Path)
	if _, err := allocator.OpenReadOnly(t.Context(), o); err != nil {
		t.Errorf("reading while somebody writes: %v", err)
	}
	execute(t, other, "COMMIT")
	if n := acquire(t, a, key(3)); n != 10003 || a.Fault() != nil {
		t.Errorf("after the lock: %d, %v", n, a.Fault())
	}
}

func TestUnreadableForThisUser(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	// Only this thread becomes nobody, and ends with the test.
	runtime.LockOSThread()
	const nobody = 65534
	if _, err := unix.SetfsuidRetUid(nobody); err != nil {
		t.Fatal(err)
	}
	_, err := allocator.OpenReadOnly(t.Context(), o)
	if _, err := unix.SetfsuidRetUid(0); err != nil {
		t.Fatal(err)
	}
	refused(t, err, allocator.ErrUnreadable, o.Path)
}

func TestDurability(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10009))
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "user_version": "2", "application_id": "1296583729"} {
		if got, err := a.Pragma(t.Context(), name); got != want || err != nil {
			t.Errorf("%s is %s, %v; want %s", name, got, err, want)
		}
	}
}

func TestLockedAtOpen(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	other := raw(t, o.Path)
	execute(t, other, "PRAGMA locking_mode=EXCLUSIVE")
	execute(t, other, "BEGIN EXCLUSIVE")
	_, err := allocator.Open(t.Context(), o)
	refused(t, err, allocator.ErrLocked, o.Path)
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 19999)
	o.Path = filepath.Join(tmpfs(t, "512k"), "state", "leases.db")
	seed(t, o)
	a := open(t, o)
	filler := fill(t, filepath.Dir(filepath.Dir(o.Path)))
	var err error
	n := 3
	for ; err == nil && n < 10000; n++ {
		_, err = a.Acquire(t.Context(), keys(n, 1), nil)
	}
	refused(t, err, allocator.ErrDiskFull, o.Path)
	got, err := a.Acquire(t.Context(), keys(0, 3), nil)
	if len(got) != 3 || err != nil {
		t.Errorf("standing leases: %v, %v", got, err)
	}

	// A start on a full disk knows all leases that were acknowledged.
	acknowledged := len(a.List())
	b, err := allocator.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.List()) != acknowledged {
		t.Errorf("a start on a full disk knows %d of %d leases", len(b.List()), acknowledged)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context(), keys(20000, 1), nil); err != nil || a.Fault() != nil {
		t.Errorf("with space again: %v, %v", err, a.Fault())
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestStartOnFullDisk(t *testing.T) {
	t.Parallel()
	for _, orderly := range []bool{true, false} {
		t.Run(map[bool]string{true: "after an orderly end", false: "after a crash"}[orderly], func(t *testing.T) {
			t.Parallel()
			o := options(t, 10000, 10009)
			live := options(t, 10000, 10009)
			a := open(t, live)
			if _, err := a.Acquire(t.Context(), keys(0, 3), nil); err != nil {
				t.Fatal(err)
			}
			if orderly {
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
			}
			dir := tmpfs(t, "512k")
			o.Path = filepath.Join(dir, "leases.db")
			copyTo(t, live.Path, o.Path)
			filler := fill(t, dir)
			b := open(t, o)
			refused(t, b.Fault(), allocator.ErrDiskFull, o.Path)
			got, err := b.Acquire(t.Context(), keys(0, 4), nil)
			refused(t, err, allocator.ErrDiskFull, o.Path)
			if len(got) != 3 {
				t.Errorf("got %v", got)
			}
			b.Release(key(0))
			refused(t, b.Flush(t.Context()), allocator.ErrDiskFull, o.Path)
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if n := acquire(t, b, key(3)); n != 10003 || b.Fault() != nil {
				t.Errorf("with space again: %d, %v", n, b.Fault())
			}
		})
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	for _, orderly := range []bool{true, false} {
		t.Run(map[bool]string{true: "after an orderly end", false: "after a crash"}[orderly], func(t *testing.T) {
			t.Parallel()
			o := options(t, 10000, 10009)
			live := options(t, 10000, 10009)
			a := open(t, live)
			if _, err := a.Acquire(t.Context(), keys(0, 3), nil); err != nil {
				t.Fatal(err)
			}
			if orderly {
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
			}
			dir := tmpfs(t, "1m")
			o.Path = filepath.Join(dir, "leases.db")
			copyTo(t, live.Path, o.Path)
			remount := func(flags uintptr) {
				if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
					t.Fatal(err)
				}
			}
			remount(unix.MS_RDONLY)
			b := open(t, o)
			got, err := b.Acquire(t.Context(), keys(0, 4), nil)
			refused(t, err, allocator.ErrReadOnly, o.Path)
			if len(got) != 3 {
				t.Errorf("got %v", got)
			}
			r, err := allocator.OpenReadOnly(t.Context(), o)
			if err != nil || len(r.List()) != 3 {
				t.Errorf("reading: %v, %v", r, err)
			}
			missing := o
			missing.Path = filepath.Join(dir, "none", "leases.db")
			_, err = allocator.Open(t.Context(), missing)
			refused(t, err, allocator.ErrReadOnly, missing.Path)
			remount(0)
			if n := acquire(t, b, key(3)); n != 10003 {
				t.Errorf("writable again: %d", n)
			}
		})
	}
}

func TestDeletedWhileOpen(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	a := open(t, o)
	if _, err := a.Acquire(t.Context(), keys(0, 3), nil); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(o.Path + suffix); err != nil {
			t.Fatal(err)
		}
	}
	if n := acquire(t, a, key(3)); n != 10003 {
		t.Errorf("got %d", n)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, o)
	if len(b.List()) != 4 {
		t.Errorf("the new file has %v, want all four leases", b.List())
	}
}

func TestBackupPutInPlaceWhileOpen(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	a := open(t, o)
	backup := options(t, 10000, 10009)
	b := open(t, backup)
	// The backup contradicts memory in one number and one key, and knows one
	// lease more.
	for _, n := range []int{50, 0, 51, 52} {
		acquire(t, b, key(n))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup.Path, o.Path); err != nil {
		t.Fatal(err)
	}
	if n := acquire(t, a, key(3)); n != 10004 {
		t.Errorf("got %d, want 10004: the backup has a lease on 10003", n)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	c := open(t, o)
	for n, want := range map[int]uint32{0: 10000, 1: 10001, 2: 10002, 52: 10003, 3: 10004} {
		if got, _ := c.Lookup(key(n)); uint32(got) != want {
			t.Errorf("key %d has %d, want %d", n, got, want)
		}
	}
	if all := c.List(); len(all) != 5 {
		t.Errorf("%v", all)
	}
}

func TestAnotherWriterCannotCauseADoubleUse(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	// Two at once must not happen (a lock file sees to it); if it does, the
	// database decides.
	a, b := open(t, o), open(t, o)
	first, second := acquire(t, a, key(10)), acquire(t, b, key(11))
	if first == second {
		t.Errorf("two processes lease %d", first)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	a := open(t, o)
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Acquire(t.Context(), keys(0, 4), nil); len(got) != 3 || !errors.Is(err, allocator.ErrClosed) {
		t.Errorf("got %v, %v", got, err)
	}
}
