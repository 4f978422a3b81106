// Package lastgood keeps the last good configuration, for a start with a bad file: one file in
// the state directory. Its first line names the source, and has a checksum.
package lastgood

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
)

// Name of the file in the state directory.
const Name = "last-good.toml"

// mode lets everybody read it: status without the daemon needs it.
const mode = 0o644

// maxSize bounds the file, in bytes: a configuration has at most 1 MiB.
const maxSize = 1<<20 + 1<<13

// ErrNone says that there is no last good configuration.
var ErrNone = errors.New("there is no last good configuration")

// A DamagedError says that the file cannot be used.
type DamagedError struct {
	Path  string
	Cause error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the last good configuration in %s cannot be used: %v", e.Path, e.Cause)
}

func (e *DamagedError) Unwrap() error { return e.Cause }

// A Saved is a configuration that was active.
type Saved struct {
	// Path is the file that holds it.
	Path string
	// Since is when it became active.
	Since time.Time
	// Text is the configuration as it was read, empty if there was no file.
	Text []byte
}

// The first line is "# last-good 1 SHA256 TIME SOURCE"; the second one is for people. Both
// are the format: an earlier version's file must stay readable.
const (
	magic = "# last-good 1 "
	note  = "# What was in force last. It is used while the file above is bad; a copy that was edited is not used.\n"
)

// Save keeps a configuration that was read from source. It writes nothing if the file has it
// already. It replaces the file atomically and durably, or not at all.
func Save(directory, source string, text []byte, now time.Time) error {
	path := filepath.Join(directory, Name)
	if s, err := Read(directory, source); err == nil && bytes.Equal(s.Text, text) && ownership.Fits(path, mode) {
		return nil
	}
	doing := func(err error) error { return fmt.Errorf("keeping the configuration in %s: %w", path, err) }
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s %s %s\n%s", magic, sum(text), now.UTC().Format(time.RFC3339), strconv.Quote(source), note)
	b.Write(text)
	if err := ownership.WriteFile(path, b.Bytes(), mode); err != nil {
		return doing(err)
	}
	return nil
}

func sum(text []byte) string {
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}

// Read returns the configuration that was kept of source. The error is a DamagedError, or
// ErrNone, also if the file is of another source.
func Read(directory, source string) (Saved, error) {
	path := filepath.Join(directory, Name)
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return Saved{}, ErrNone
	}
	if err != nil {
		return Saved{}, &DamagedError{path, err}
	}
	s, from, err := parse(data)
	if err != nil {
		return Saved{}, &DamagedError{path, err}
	}
	if from != source {
		return Saved{}, ErrNone
	}
	s.Path = path
	return s, nil
}

// read reads a regular file that nobody else may write.
func read(path string) (data []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("others may write to it (mode %v)", info.Mode().Perm())
	}
	return fsutil.Read(f, maxSize)
}

func parse(data []byte) (s Saved, source string, err error) {
	head, rest, found := bytes.Cut(data, []byte("\n"))
	line, ours := strings.CutPrefix(string(head), magic)
	text, noted := bytes.CutPrefix(rest, []byte(note))
	// The source may hold spaces; it is last.
	words := strings.SplitN(line, " ", 3)
	if !found || !ours || !noted || len(words) != 3 {
		return Saved{}, "", errors.New("its first lines are not from multihomed")
	}
	if words[0] != sum(text) {
		return Saved{}, "", errors.New("it was edited, or is incomplete")
	}
	if s.Since, err = time.Parse(time.RFC3339, words[1]); err != nil {
		return Saved{}, "", fmt.Errorf("its time: %w", err)
	}
	if source, err = strconv.Unquote(words[2]); err != nil {
		return Saved{}, "", fmt.Errorf("its source: %w", err)
	}
	s.Text = text
	return s, source, nil
}
