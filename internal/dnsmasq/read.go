package dnsmasq

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"multihomed/internal/fsutil"
)

// maxSize bounds the file, in bytes.
const maxSize = 4 << 20

// Read returns the servers that an earlier process wrote, each with at most one domain; none
// if there is no file. It skips lines that are not ours.
func (f *File) Read() ([]Server, error) {
	text, err := fsutil.ReadFileNoFollow(f.path, maxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading dnsmasq's servers in %s: %w", f.path, err)
	}
	own, is := strings.CutPrefix(string(text), header)
	if !is {
		return nil, nil // Somebody else's.
	}
	var out []Server
	for text := range strings.Lines(own) {
		if s, is := parse(strings.TrimSuffix(text, "\n")); is {
			out = append(out, s)
		}
	}
	return out, nil
}

// parse is the reverse of [line.String].
func parse(text string) (s Server, is bool) {
	text, s.Dead = strings.CutPrefix(text, deadMark)
	text, is = strings.CutPrefix(text, "server=")
	if !is {
		return Server{}, false
	}
	if rest, scoped := strings.CutPrefix(text, "/"); scoped {
		domain, rest, whole := strings.Cut(rest, "/")
		if !whole {
			return Server{}, false
		}
		text, s.Domains, s.OnlyDomains = rest, []string{domain}, true
	}
	fields := strings.Split(text, "@")
	if len(fields) < 2 || len(fields) > 3 {
		return Server{}, false
	}
	var err error
	s.Interface = fields[1]
	if s.Address, err = netip.ParseAddr(fields[0]); err != nil {
		return Server{}, false
	}
	if len(fields) == 3 {
		if s.Source, err = netip.ParseAddr(fields[2]); err != nil {
			return Server{}, false
		}
	}
	if _, err = s.line(); err != nil {
		return Server{}, false
	}
	s.Address = s.Address.WithZone("")
	return s, true
}
