package lastgood_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/internal/lastgood"
)

const source = "/etc/multi homed/\"x\".toml"

func at(hour int) time.Time { return time.Date(2026, 11, 28, hour, 0, 0, 0, time.UTC) }

func TestSaveAndRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := lastgood.Read(dir, source); !errors.Is(err, lastgood.ErrNone) {
		t.Errorf("before: %v", err)
	}
	for _, text := range []string{"", "a = 1\n", "# only\n# comments", strings.Repeat("x", 1<<20)} {
		if err := lastgood.Save(dir, source, []byte(text), at(1)); err != nil {
			t.Fatal(err)
		}
		got, err := lastgood.Read(dir, source)
		if err != nil || string(got.Text) != text || !got.Since.Equal(at(1)) || got.Path != filepath.Join(dir, lastgood.Name) {
			t.Errorf("%.20q: %.20q, %v, %v", text, got.Text, got.Since, err)
		}
	}
	// The same once more keeps its time.
	if err := lastgood.Save(dir, source, []byte(strings.Repeat("x", 1<<20)), at(5)); err != nil {
		t.Fatal(err)
	}
	if got, err := lastgood.Read(dir, source); err != nil || !got.Since.Equal(at(1)) {
		t.Errorf("since %v, %v", got.Since, err)
	}
	// It is of no use for another file.
	if _, err := lastgood.Read(dir, "/etc/other.toml"); !errors.Is(err, lastgood.ErrNone) {
		t.Errorf("of another file: %v", err)
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, lastgood.Name)
	if err := lastgood.Save(dir, source, []byte("first = 1\nlast = 2\n"), at(1)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(name string) {
		t.Helper()
		_, err := lastgood.Read(dir, source)
		if d, is := errors.AsType[*lastgood.DamagedError](err); !is || d.Path != path || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// However it is cut off, and whatever byte of the text or of the first word changes.
	for n := range good {
		if err := os.WriteFile(path, good[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		damaged("cut off")
	}
	for n := range good {
		changed := append([]byte{}, good...)
		changed[n] ^= 1
		if err := os.WriteFile(path, changed, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := lastgood.Read(dir, source); err == nil && string(got.Text) != "first = 1\nlast = 2\n" {
			t.Errorf("byte %d: %q", n, got.Text)
		}
	}
	if err := errors.Join(os.WriteFile(path, good, 0o644), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	damaged("for everybody to write")
	if err := errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)); err != nil {
		t.Fatal(err)
	}
	damaged("a link")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	damaged("a directory")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := lastgood.Save(dir, source, nil, at(2)); err != nil {
		t.Fatal(err)
	}
	if got, err := lastgood.Read(dir, source); err != nil || len(got.Text) != 0 {
		t.Errorf("%q, %v", got.Text, err)
	}
}
