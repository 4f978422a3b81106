package holding

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"multihomed/internal/binder/wire"
	"multihomed/internal/escape"
)

// Bounds of what is kept: links, and maps of one. A link has more than one map if the first programs are bound to it at the
// same time.
const (
	mostLinks  = 128
	mostOfLink = 4
)

// Maps are the DNS maps of links. They outlive a change of the configuration.
type Maps struct {
	// Store gives a descriptor to systemd, to have it back after a restart; nil where nobody keeps it.
	Store func(name string, f *os.File) error

	mu   sync.Mutex
	maps map[string][]kept
}

type kept struct {
	file *os.File
	// holds is what the map holds, nil if that is not known.
	holds *wire.DNS
}

// storePrefix begins the names of maps in systemd's store.
const storePrefix = "dns-map-"

// longestName bounds the names in systemd's store (FDNAME in sd_notify(3)): it gives another name to what has a longer one.
const longestName = 255

// StoreName is the name of a link's map in systemd's store. A name there has no colon and no control character
// (FDNAME in sd_notify(3)); what an interface's name cannot have, and other bytes than ASCII, are escaped.
func StoreName(link string) string {
	var b strings.Builder
	b.WriteString(storePrefix)
	for _, c := range []byte(link) {
		if c <= ' ' || c >= 0x7f || c == '%' || c == ':' || c == '/' {
			fmt.Fprintf(&b, "%%%02x", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// linkOf is the reverse of StoreName.
func linkOf(name string) (link string, is bool) {
	rest, is := strings.CutPrefix(name, storePrefix)
	if !is {
		return "", false
	}
	var b []byte
	for rest != "" {
		if rest[0] != '%' {
			b, rest = append(b, rest[0]), rest[1:]
			continue
		}
		var c byte
		if len(rest) < 3 {
			return "", false
		}
		if _, err := fmt.Sscanf(rest[1:3], "%02x", &c); err != nil {
			return "", false
		}
		b, rest = append(b, c), rest[3:]
	}
	return string(b), len(b) > 0 && StoreName(string(b)) == name
}

// TakeStored takes what systemd kept, by its name, and reports whether it is a map.
func (m *Maps) TakeStored(name string, f *os.File) bool {
	link, is := linkOf(name)
	return is && m.add(link, f, nil, false) == nil
}

var errTooMany = errors.New("multihomed keeps as many DNS maps as it may; to fix: systemctl stop multihomed && systemctl start multihomed")

// add keeps a map.
func (m *Maps) add(link string, f *os.File, holds *wire.DNS, isNew bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.maps == nil {
		m.maps = map[string][]kept{}
	}
	if len(m.maps[link]) >= mostOfLink || m.maps[link] == nil && len(m.maps) >= mostLinks {
		return errTooMany
	}
	m.maps[link] = append(m.maps[link], kept{f, holds})
	if isNew && m.Store != nil {
		if len(StoreName(link)) > longestName {
			return fmt.Errorf("the name of %s is too long for systemd; to fix: name the link by its interface or UUID", escape.Text(link))
		}
		return m.Store(StoreName(link), f)
	}
	return nil
}

// Keep keeps a new map of a link, and gives it to systemd. One that is not kept is closed: programs that have it go on.
func (m *Maps) Keep(link string, f *os.File, holds wire.DNS) error {
	err := m.add(link, f, &holds, true)
	if errors.Is(err, errTooMany) {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Of returns the newest map of a link, nil if there is none.
func (m *Maps) Of(link string) *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	if all := m.maps[link]; len(all) > 0 {
		return all[len(all)-1].file
	}
	return nil
}

// Len is how many links have a map.
func (m *Maps) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.maps)
}

// Close closes all. systemd has its own copies.
func (m *Maps) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, all := range m.maps {
		for _, k := range all {
			errs = append(errs, k.file.Close())
		}
	}
	m.maps = nil
	return errors.Join(errs...)
}

// follow has the maps of each link changed that do not hold what they should. Without servers a link's maps stay as they
// are: the link may be down, and queries that cannot leave by it fail.
func (m *Maps) follow(ctx context.Context, want func(link string) wire.DNS, change func(context.Context, wire.DNS, *os.File) error) error {
	type todo struct {
		link string
		n    int
		file *os.File
		dns  wire.DNS
	}
	var todos []todo
	m.mu.Lock()
	for link, all := range m.maps {
		d := want(link)
		if !d.Server4.IsValid() && !d.Server6.IsValid() {
			continue
		}
		for n, k := range all {
			if k.holds == nil || !k.holds.Equal(d) {
				todos = append(todos, todo{link, n, k.file, d})
			}
		}
	}
	m.mu.Unlock()
	slices.SortFunc(todos, func(a, b todo) int { return strings.Compare(a.link, b.link) })
	var errs []error
	for _, t := range todos {
		if err := change(ctx, t.dns, t.file); err != nil {
			errs = append(errs, fmt.Errorf("programs that are bound to %s keep its old DNS servers: %w", t.link, err))
			continue
		}
		m.mu.Lock()
		if t.n < len(m.maps[t.link]) {
			m.maps[t.link][t.n].holds = &t.dns
		}
		m.mu.Unlock()
	}
	return errors.Join(errs...)
}
