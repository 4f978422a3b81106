// Package ancestor reads what the table allocator of kristrev/multihomed-routing
// leaves on a host: the configuration of its server and its database. It changes nothing.
package ancestor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"multihomed/internal/fsutil"
	"multihomed/routing"
)

// DefaultConfig is where the ancestor's package puts its configuration.
const DefaultConfig = "/etc/table_allocator_server_config.json"

// A Config is the part of the ancestor's configuration that matters here.
type Config struct {
	// Socket is the abstract name of its socket.
	Socket string
	// Tables is its range: num_tables from table_offset on.
	Tables routing.TableRange
	// Lifetime of a lease.
	Lifetime time.Duration
	// Database is the path of its database.
	Database string
	// Families that it leases: 0, 2, 10.
	Families []routing.Family
	// Unknown are keys that mean nothing to the ancestor either.
	Unknown []string
}

// maxSize bounds a configuration, in bytes; the ancestor itself reads 1,024.
const maxSize = 64 << 10

// maxTimeout is the longest table_timeout: the ancestor keeps it in 16 bits, and
// takes a longer one modulo 65536.
const maxTimeout = math.MaxUint16

// ReadConfig reads a configuration file.
func ReadConfig(path string) (Config, error) {
	data, err := fsutil.ReadFile(path, maxSize)
	if errors.Is(err, fsutil.ErrTooLarge) {
		return Config{}, fmt.Errorf("%w: it is not a configuration of the table allocator", err)
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the ancestor's configuration: %w; to fix: name the file with --from", err)
	}
	return parseConfig(path, data)
}

// raw is the file as the ancestor names things.
type raw struct {
	SocketPath   *string `json:"socket_path"`
	TableOffset  *int64  `json:"table_offset"`
	NumTables    *int64  `json:"num_tables"`
	TableTimeout *int64  `json:"table_timeout"`
	DBPath       *string `json:"db_path"`
	AddrFamilies *struct {
		Inet   bool `json:"inet"`
		Inet6  bool `json:"inet6"`
		Unspec bool `json:"unspec"`
	} `json:"addr_families"`
	// Where it logs is its own affair.
	DoSyslog json.RawMessage `json:"do_syslog"`
	LogPath  json.RawMessage `json:"log_path"`
}

// parseConfig reads a configuration; name is the file for error messages.
func parseConfig(name string, data []byte) (Config, error) {
	text := blankComments(data)
	decoder := json.NewDecoder(bytes.NewReader(text))
	var file raw
	if err := decoder.Decode(&file); err != nil {
		return Config{}, positioned(name, text, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s:%d: text after the object; to fix: remove it", name, lineOf(text, decoder.InputOffset()))
	}
	c, mistakes := file.check()
	if len(mistakes) > 0 {
		return Config{}, fmt.Errorf("%s: %s", name, strings.Join(mistakes, "; "))
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return Config{}, positioned(name, text, err)
	}
	known := []string{"socket_path", "table_offset", "num_tables", "table_timeout", "db_path", "addr_families", "do_syslog", "log_path"}
	for key := range all {
		if !slices.Contains(known, key) {
			c.Unknown = append(c.Unknown, key)
		}
	}
	slices.Sort(c.Unknown)
	return c, nil
}

func (r raw) check() (c Config, mistakes []string) {
	fail := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	if r.SocketPath == nil || *r.SocketPath == "" {
		fail("socket_path is missing; want the abstract name of the server's socket")
	} else {
		c.Socket = *r.SocketPath
	}
	switch {
	case r.TableOffset == nil || r.NumTables == nil:
		fail("table_offset or num_tables is missing; want the first table and how many there are")
	case *r.TableOffset < 1 || *r.NumTables < 1 || *r.TableOffset > math.MaxUint32 || *r.NumTables > math.MaxUint32-*r.TableOffset+1:
		fail("table_offset %d and num_tables %d make no range of routing tables", *r.TableOffset, *r.NumTables)
	default:
		c.Tables = routing.TableRange{First: routing.TableID(*r.TableOffset), Last: routing.TableID(*r.TableOffset + *r.NumTables - 1)} //nolint:gosec // compared above
	}
	if r.TableTimeout == nil || *r.TableTimeout < 1 || *r.TableTimeout > math.MaxInt32 {
		fail("table_timeout is missing or makes no sense; want seconds from 1 to %d", maxTimeout)
	} else {
		c.Lifetime = time.Duration(*r.TableTimeout) * time.Second
	}
	if r.DBPath == nil || *r.DBPath == "" {
		fail("db_path is missing; want the path of the database")
	} else {
		c.Database = *r.DBPath
	}
	if f := r.AddrFamilies; f != nil {
		for _, family := range []struct {
			on bool
			is routing.Family
		}{{f.Unspec, 0}, {f.Inet, routing.IPv4}, {f.Inet6, routing.IPv6}} {
			if family.on {
				c.Families = append(c.Families, family.is)
			}
		}
	}
	if len(c.Families) == 0 {
		fail("addr_families has none that is true; want inet, inet6 or unspec")
	}
	return c, mistakes
}

// blankComments replaces comments, from // to the end of the line, by spaces, so that
// positions stay the same.
func blankComments(data []byte) []byte {
	out := bytes.Clone(data)
	inText, escaped := false, false
	for i := 0; i < len(out); i++ {
		switch c := out[i]; {
		case inText:
			inText = escaped || c != '"'
			escaped = !escaped && c == '\\'
		case c == '"':
			inText = true
		case c == '/' && i+1 < len(out) && out[i+1] == '/':
			for ; i < len(out) && out[i] != '\n'; i++ {
				out[i] = ' '
			}
		}
	}
	return out
}

// positioned adds the line to an error of the JSON library.
func positioned(name string, text []byte, err error) error {
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("%s:%d: not JSON: %w", name, lineOf(text, e.Offset), err)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s:%d: %s is a %s; see the ancestor's documentation", name, lineOf(text, e.Offset), e.Field, e.Value)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s:%d: not JSON: it ends too early", name, lineOf(text, int64(len(text))))
	}
	return fmt.Errorf("%s: %w", name, err)
}

func lineOf(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:min(offset, int64(len(text)))], []byte("\n"))
}
