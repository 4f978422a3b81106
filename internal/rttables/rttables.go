// Package rttables reads and writes the names that iproute2 gives routing tables. A number
// with a name is in use, even if its table is empty.
package rttables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"multihomed/internal/fsutil"
	"multihomed/routing"
)

// OwnFile is the file in rt_tables.d that names the tables of multihomed.
const OwnFile = "multihomed.conf"

// maxSize of one file; a real one has a few lines.
const maxSize = 1 << 20

// maxName is how much of a name is shown.
const maxName = 64

// A Name is what a file calls a table.
type Name struct{ Name, File string }

// Names are the tables that have a name. The zero value knows none.
type Names struct{ byTable map[routing.TableID]Name }

// Lookup reports whether a table has a name, with the name and its file.
func (n Names) Lookup(t routing.TableID) (why string, used bool) {
	name, used := n.byTable[t]
	if !used {
		return "", false
	}
	return fmt.Sprintf("%s in %s", name.Name, name.File), true
}

// Directories are those where iproute2 looks for its files: the
// administrator's, and the distribution's, which moved to /usr with iproute2 6.5
// (Debian 13; some built it with /usr/lib).
func Directories() []string {
	return []string{"/etc/iproute2", "/usr/share/iproute2", "/usr/lib/iproute2"}
}

// Load reads the names from Directories.
func Load() (Names, error) { return loadFrom(Directories()...) }

// loadFrom reads rt_tables and rt_tables.d/*.conf from directories that may be
// missing. All are read, also where iproute2 would let one file hide another: a
// number left out costs nothing. If a file cannot be read the error says so, and
// the names of the others are returned.
func loadFrom(directories ...string) (Names, error) {
	n := Names{byTable: map[routing.TableID]Name{}}
	var errs []error
	for _, dir := range directories {
		errs = append(errs, n.read(filepath.Join(dir, "rt_tables")))
		// In order of names, as iproute2 6.x does.
		entries, err := os.ReadDir(filepath.Join(dir, "rt_tables.d"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("reading names of routing tables: %w", err))
		}
		for _, e := range entries {
			// As rtnl_tabhash_readdir of iproute2's lib/rt_names.c.
			if name := e.Name(); strings.HasSuffix(name, ".conf") && !strings.HasPrefix(name, ".") && name != OwnFile {
				errs = append(errs, n.read(filepath.Join(dir, "rt_tables.d", name)))
			}
		}
	}
	return n, errors.Join(errs...)
}

func (n Names) read(path string) error {
	data, err := fsutil.ReadFile(path, maxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fsutil.ErrNotRegular):
		err = fmt.Errorf("%w; to fix: remove it", err)
	case errors.Is(err, fsutil.ErrTooLarge):
		err = fmt.Errorf("%w; to fix: remove the lines that name no table", err)
	}
	if err != nil {
		return fmt.Errorf("reading names of routing tables: %w", err)
	}
	n.parse(path, string(data))
	return nil
}

// parse takes every line that gives a number a name, in decimal or with 0x.
// iproute2 stops at the first line that it does not understand; here the rest
// counts too.
func (n Names) parse(file, text string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[1], "#") {
			continue
		}
		id, ok := number(fields[0])
		if !ok {
			continue
		}
		if _, known := n.byTable[id]; !known {
			n.byTable[id] = Name{Name: printable(fields[1]), File: file}
		}
	}
}

func number(text string) (routing.TableID, bool) {
	base := 10
	if hex, ok := strings.CutPrefix(text, "0x"); ok {
		text, base = hex, 16
	}
	id, err := strconv.ParseUint(text, base, 32)
	return routing.TableID(id), err == nil
}

// printable makes a name fit for a message: short, and without what a terminal
// would take for a command.
func printable(name string) string {
	if len(name) > maxName {
		name = name[:maxName] + "..."
	}
	if quoted := strconv.QuoteToGraphic(name); quoted != `"`+name+`"` {
		return quoted
	}
	return name
}
