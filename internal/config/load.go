package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"multihomed/internal/fsutil"
)

// maxSize bounds a configuration file, in bytes, so that no file delays the start.
const maxSize = 1 << 20

// Load reads a configuration file. A missing file is the default configuration.
func Load(path string) (Config, error) {
	cfg, _, err := load(path)
	return cfg, err
}

// read reads the file. A pipe in its place must not block the start.
func read(path string) (data []byte, err error) {
	data, err = fsutil.ReadFile(path, maxSize)
	if errors.Is(err, fs.ErrNotExist) {
		if link, to, is := dangling(path); is {
			return nil, &Error{File: path, Message: fmt.Sprintf("%s is a symbolic link to %s, which does not exist; make that available, or remove the link to have the defaults", link, to)}
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("reading the configuration: %w; to fix: chmod a+x %s && chmod a+r %s", err, filepath.Dir(path), path)
	}
	switch {
	case errors.Is(err, fsutil.ErrNotRegular):
		return nil, &Error{File: path, Message: "not a regular file; want a TOML file, or none"}
	case errors.Is(err, fsutil.ErrTooLarge):
		return nil, &Error{File: path, Message: "larger than 1 MiB, the most that is read"}
	case err != nil:
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return data, nil
}

// dangling finds the symbolic link because of which a file does not exist: the file itself or
// a directory above it. Its target may be on a disk that is mounted later, or may not be
// written yet. An administrator who made the link did not want the defaults.
func dangling(path string) (link, to string, is bool) {
	for ; ; path = filepath.Dir(path) {
		if info, err := os.Lstat(path); err == nil {
			if info.Mode().Type() != fs.ModeSymlink {
				return "", "", false // The file is missing below it.
			}
			to, err := os.Readlink(path)
			return path, to, err == nil
		}
		if path == filepath.Dir(path) {
			return "", "", false
		}
	}
}

// IsMissing reports whether there is no configuration file, so that the defaults are active.
// A dangling symbolic link is not that case.
func IsMissing(path string) bool {
	_, err := os.Stat(path)
	_, _, is := dangling(path)
	return errors.Is(err, fs.ErrNotExist) && !is
}

// Byte order marks: editors on other systems write them at the beginning of a file.
const (
	markUTF8  = "\xef\xbb\xbf"
	markUTF16 = "\xff\xfe"
	markOther = "\xfe\xff"
)

// unmarked removes the mark of UTF-8, and refuses another encoding.
func unmarked(name string, data []byte) ([]byte, error) {
	text := string(data[:min(len(data), len(markUTF8))])
	if strings.HasPrefix(text, markUTF16) || strings.HasPrefix(text, markOther) {
		return nil, &Error{File: name, Line: 1, Message: "it is encoded in UTF-16, and TOML is UTF-8; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"}
	}
	return bytes.TrimPrefix(data, []byte(markUTF8)), nil
}

// Parse reads a configuration; name is the file for error messages.
func Parse(name string, data []byte) (Config, error) {
	data, err := unmarked(name, data)
	if err != nil {
		return Config{}, err
	}
	at, syntax := locate(data)
	if syntax != nil {
		syntax.File = name
		return Config{}, syntax
	}
	if err := foreign(name, at); err != nil {
		return Config{}, err
	}
	v := validator{file: name, at: at, faulty: map[string]bool{}}
	values := map[string]any{}
	if err := toml.Unmarshal(at.decodable, &values); err != nil {
		// It breaks a rule of TOML that is not one of its grammar, such as a key that is
		// there twice: its values mean nothing, its keys do.
		v.keys()
		v.broken(err)
		return Config{}, v.error()
	}
	var file raw
	v.read(reflect.ValueOf(&file).Elem(), values, place{})
	cfg := v.config(file)
	if err := v.error(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// mostUnknown bounds the different unknown keys of a file that can be ours.
const mostUnknown = 100

// foreign refuses a file that cannot be meant for us.
func foreign(name string, at *positions) error {
	unknown, first, line := 0, "", 0
	for key, l := range at.lines {
		if isKey(key) {
			continue
		}
		if unknown++; first == "" || l < line {
			first, line = key, l
		}
	}
	if unknown <= mostUnknown {
		return nil
	}
	return &Error{File: name, Line: line, Key: first, Message: fmt.Sprintf("unknown key, the first of %d; this is no configuration of multihomed", unknown)}
}

// suggestion names the key that was probably meant, or all keys of the table.
func suggestion(key string) string {
	if near, ok := nearest(key); ok {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	table := parent(key)
	if _, known := allowed(table); !known {
		table = ""
	}
	var there []string
	for _, s := range specs() {
		if parent(s.key) == table {
			there = append(there, leaf(s.key))
		}
	}
	if table != "" {
		return fmt.Sprintf("; %s has %s", table, strings.Join(there, ", "))
	}
	return "; there are " + strings.Join(there, ", ")
}
