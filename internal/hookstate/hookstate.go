// Package hookstate keeps the reports of hooks of DHCP clients and ifupdown on the interfaces
// that they configure: that these are links, and facts from a DHCP server that are not in
// main.
//
// Each configuration is a file in the runtime directory. The hook writes it before it sends
// a message, so that a daemon that hangs, restarts or was killed finds it. It is gone after a
// reboot, as the configuration is.
package hookstate

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"multihomed/dispatcher"
	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
	"multihomed/routing"
)

// Directory is the name of the directory in the runtime directory.
const Directory = "hooks"

// A Config is one configuration of an interface by one caller of a hook.
type Config struct {
	Interface string `json:"interface"`
	// Index of the interface that was configured, which tells it from a later one of the
	// same name.
	Index int `json:"index"`
	// Caller and Part tell configurations of a family apart.
	Caller string         `json:"caller"`
	Part   string         `json:"part,omitempty"`
	Family routing.Family `json:"family"`
	// Addresses of the configuration, none if they are not known.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Routes that the caller knows, the default among them.
	Routes []Route `json:"routes,omitempty"`
	// Servers and Domains are for DNS.
	Servers []netip.Addr `json:"servers,omitempty"`
	Domains []string     `json:"domains,omitempty"`
	// Delegated are prefixes that the network routes to this host.
	Delegated []netip.Prefix `json:"delegated,omitempty"`
	// Automatic says that routes come from the network: a missing one may come later.
	Automatic bool `json:"automatic,omitempty"`
	// Since is for people.
	Since time.Time `json:"since"`
}

// A Route is a route without its device. A zero Gateway means that the destination is on the
// link.
type Route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"`
	// Source is the address that the route is for, zero for any.
	Source netip.Addr `json:"source,omitzero"`
	// Metric that it had in main, if it was moved from there.
	Metric uint32 `json:"metric,omitempty"`
	// Main is the rest of what it was in main, if it was moved from there.
	Main Main `json:"main,omitzero"`
}

// Main is the rest of a route of main, so that it can be put back unchanged. It is zero in
// files of earlier versions.
type Main struct {
	Protocol   routing.Protocol   `json:"protocol"`
	Scope      routing.Scope      `json:"scope,omitempty"`
	TOS        uint8              `json:"tos,omitempty"`
	OnLink     bool               `json:"onlink,omitempty"`
	Preference routing.Preference `json:"preference,omitempty"`
	// From restricts the route to packets from a prefix; Source is its preferred source.
	From       netip.Prefix    `json:"from,omitzero"`
	Source     netip.Addr      `json:"source,omitzero"`
	Metrics    routing.Metrics `json:"metrics,omitzero"`
	Congestion string          `json:"congestion,omitempty"`
	Realm      uint32          `json:"realm,omitempty"`
}

// MainOf is the part of a route of main that is kept. It has neither an encapsulation nor the
// weight of a multipath route.
func MainOf(r routing.Route) Main {
	rare := r.Attributes.Get()
	return Main{
		Protocol: r.Protocol, Scope: r.Scope, TOS: r.TOS, OnLink: r.OnLink, Preference: r.Preference, From: r.Source, Source: r.PreferredSource,
		Metrics: rare.Metrics, Congestion: rare.Congestion, Realm: rare.Realm,
	}
}

// Restore sets these attributes of a route of main.
func (m Main) Restore(r *routing.Route) {
	r.Protocol, r.Scope, r.TOS, r.OnLink, r.Preference, r.Source, r.PreferredSource = m.Protocol, m.Scope, m.TOS, m.OnLink, m.Preference, m.From, m.Source
	r.Attributes = routing.RareAttributes{Metrics: m.Metrics, Congestion: m.Congestion, Realm: m.Realm}.Share()
}

// Of returns the configurations of an event, one for each family.
func Of(e dispatcher.Event, index int, now time.Time) []Config {
	var all []Config
	for _, f := range routing.Families() {
		said, is := e.Configs[f]
		if !is {
			continue
		}
		c := Config{
			Interface: e.Interface, Index: index, Caller: e.Caller, Part: e.Part, Family: f,
			Addresses: said.Addresses, Servers: said.Servers, Domains: said.Domains, Delegated: said.Delegated,
			// Without an address, the network or a DHCP client provides it.
			Automatic: e.Caller != "ifupdown" || len(said.Addresses) == 0, Since: now,
		}
		// With one address the routes are its own. Routes of a router advertisement
		// belong to all addresses.
		var source netip.Addr
		if len(said.Addresses) == 1 && f == routing.IPv4 {
			source = said.Addresses[0].Addr()
		}
		for _, r := range said.Routes {
			c.Routes = append(c.Routes, Route{Destination: r.Destination.Masked(), Gateway: r.Gateway, Source: source})
		}
		if len(said.Gateways) > 0 {
			c.Routes = append(c.Routes, Route{Destination: f.Any(), Gateway: said.Gateways[0], Source: source})
		}
		all = append(all, c)
	}
	return all
}

// Compare orders configurations by interface, family, caller and part.
func Compare(a, b Config) int {
	return cmp.Or(
		strings.Compare(a.Interface, b.Interface), cmp.Compare(a.Family, b.Family),
		strings.Compare(a.Caller, b.Caller), strings.Compare(a.Part, b.Part),
	)
}

const suffix = ".json"

// file is the name of the file of a configuration.
func (c Config) file() string {
	words := []string{c.Interface, c.Family.String(), c.Caller}
	if c.Part != "" {
		words = append(words, c.Part)
	}
	for i, w := range words {
		words[i] = url.QueryEscape(w)
	}
	return strings.Join(words, "@") + suffix
}

// Bounds of a configuration. A file name has 255 bytes at most (NAME_MAX), of
// which the temporary name of renameio needs some.
const (
	maxName  = 220
	maxSize  = 256 << 10
	maxItems = 1024
)

func (c Config) check() error {
	if err := routing.CheckInterfaceName(c.Interface); err != nil {
		return err
	}
	switch {
	case !utf8.ValidString(c.Interface):
		return fmt.Errorf("the interface name %q cannot be written down: it is no UTF-8", c.Interface)
	case c.Index <= 0:
		return fmt.Errorf("%d is not the index of an interface", c.Index)
	case c.Family != routing.IPv4 && c.Family != routing.IPv6:
		return fmt.Errorf("%d is not an address family", c.Family)
	case c.Caller == "" || len(c.file()) > maxName || !utf8.ValidString(c.Caller+c.Part):
		return fmt.Errorf("%q and %q do not name a caller", c.Caller, c.Part)
	case len(c.Addresses) > maxItems || len(c.Routes) > maxItems || len(c.Servers) > maxItems || len(c.Domains) > maxItems:
		return fmt.Errorf("it holds more than %d addresses, routes, servers or domains", maxItems)
	}
	if len(c.Delegated) > dispatcher.MaxDelegated {
		return fmt.Errorf("it holds more than %d delegated prefixes", dispatcher.MaxDelegated)
	}
	for _, d := range c.Delegated {
		if err := dispatcher.CheckDelegated(d); err != nil || routing.FamilyOf(d.Addr()) != c.Family {
			return fmt.Errorf("%v is not a delegated prefix of %v", d, c.Family)
		}
	}
	of := func(a netip.Addr) bool {
		return a.IsValid() && !a.Is4In6() && a.Zone() == "" && routing.FamilyOf(a) == c.Family
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || !of(a.Addr()) {
			return fmt.Errorf("%v is not an address of %v", a, c.Family)
		}
	}
	for _, r := range c.Routes {
		if !r.Destination.IsValid() || !of(r.Destination.Addr()) || r.Destination != r.Destination.Masked() {
			return fmt.Errorf("%v is not a destination of %v", r.Destination, c.Family)
		}
		if r.Gateway.IsValid() && !of(r.Gateway) || r.Source.IsValid() && !of(r.Source) {
			return fmt.Errorf("%v from %v by %v is not a route of %v", r.Destination, r.Source, r.Gateway, c.Family)
		}
	}
	for _, a := range c.Servers {
		if !of(a) {
			return fmt.Errorf("%v is not the address of a server of %v", a, c.Family)
		}
	}
	return nil
}

// Known are the routes as the planner takes them.
func (c Config) Known() []routing.Route {
	all := make([]routing.Route, 0, len(c.Routes))
	for _, r := range c.Routes {
		k := routing.Route{
			Family: c.Family, Destination: r.Destination, Gateway: r.Gateway, PreferredSource: r.Source,
			Type: routing.RouteUnicast,
		}
		if c.Family == routing.IPv4 && !r.Gateway.IsValid() {
			k.Scope = routing.ScopeLink
		}
		all = append(all, k)
	}
	return all
}

// Put writes a configuration, and replaces the earlier one of its caller.
func Put(runtime string, c Config) error {
	doing := func(err error) error {
		return fmt.Errorf("storing the report of %s on %s: %w", c.Caller, c.Interface, err)
	}
	if err := c.check(); err != nil {
		return doing(err)
	}
	data, err := json.Marshal(c)
	if err != nil {
		return doing(err)
	}
	if len(data) > maxSize {
		return doing(fmt.Errorf("it has %d bytes, %d is the most", len(data), maxSize))
	}
	if err := ownership.MakeDirectory(filepath.Join(runtime, Directory)); err != nil {
		return doing(err)
	}
	directory, err := open(runtime)
	if err != nil {
		return doing(err)
	}
	err = ownership.WriteFileIn(directory, c.file(), append(data, '\n'), 0o644)
	if err = errors.Join(err, directory.Close()); err != nil {
		return doing(err)
	}
	return nil
}

func open(runtime string) (*os.Root, error) { return fsutil.OpenDirectoryIn(runtime, Directory) }

// Ifupdown is a caller. Mover is the caller of configurations that hold the routes moved out
// of main for it.
const (
	Ifupdown = "ifupdown"
	Mover    = "multihomed"
)

// Remove removes the configurations of an interface that a function picks. Routes that were
// moved out of main go with the configuration that brought them.
func Remove(runtime, name string, which func(Config) bool) error {
	all, errs := read(runtime, name)
	movable := map[routing.Family]bool{}
	for _, c := range all {
		if c.Caller == Ifupdown && !which(c) {
			movable[c.Family] = true
		}
	}
	if len(all) == 0 {
		return errors.Join(errs...)
	}
	directory, err := open(runtime)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer directory.Close()
	for _, c := range all {
		if !which(c) && (c.Caller != Mover || movable[c.Family]) {
			continue
		}
		if err := directory.Remove(c.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("removing the report of %s on %s: %w", c.Caller, name, err))
		}
	}
	return errors.Join(errs...)
}

// read returns the configurations of one interface, of all if the name is empty. Files that
// cannot be read stay, and are in the errors.
func read(runtime, name string) ([]Config, []error) {
	directory, err := open(runtime)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("opening the reports of hooks: %w", err)}
	}
	defer directory.Close()
	entries, err := fs.ReadDir(directory.FS(), ".")
	if err != nil {
		return nil, []error{fmt.Errorf("listing the reports of hooks: %w", err)}
	}
	var all []Config
	var errs []error
	for _, e := range entries {
		of, _, whole := strings.Cut(e.Name(), "@")
		// Other files are temporary ones of killed processes, which end in a number. The
		// name of an interface may begin with a dot, too.
		if !whole || !strings.HasSuffix(e.Name(), suffix) || name != "" && of != url.QueryEscape(name) {
			continue
		}
		path := filepath.Join(runtime, Directory, e.Name())
		c, err := readFile(directory, e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It was removed just now.
		case err != nil:
			errs = append(errs, fmt.Errorf("reading %s: %w; to fix: remove it, and bring the interface up again", path, err))
		case c.file() != e.Name():
			errs = append(errs, fmt.Errorf("reading %s: it is about something else; to fix: remove it", path))
		default:
			all = append(all, c)
		}
	}
	slices.SortFunc(all, Compare)
	return all, errs
}

func readFile(directory *os.Root, name string) (c Config, err error) {
	data, err := fsutil.ReadFileIn(directory, name, maxSize)
	if err != nil {
		return Config{}, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return Config{}, err
	}
	return c, c.check()
}
