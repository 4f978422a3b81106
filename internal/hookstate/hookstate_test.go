package hookstate_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"multihomed/dispatcher"
	"multihomed/internal/hookstate"
	"multihomed/routing"
)

var (
	any4    = routing.IPv4.Any()
	gateway = netip.MustParseAddr("192.0.2.1")
	server6 = netip.MustParseAddr("2001:db8::53")
	since   = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
)

// lease is what dhclient says of an interface.
func lease(name string) hookstate.Config {
	return hookstate.Config{
		Interface: name, Index: 7, Caller: "dhclient", Family: routing.IPv4, Automatic: true, Since: since,
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24")},
		Routes:    []hookstate.Route{{Destination: any4, Gateway: gateway, Source: netip.MustParseAddr("192.0.2.10")}},
		Servers:   []netip.Addr{gateway}, Domains: []string{"example.net"},
	}
}

func put(tb testing.TB, runtime string, all ...hookstate.Config) {
	tb.Helper()
	for _, c := range all {
		if err := hookstate.Put(runtime, c); err != nil {
			tb.Fatal(err)
		}
	}
}

// raw writes a file as no hook does.
func raw(tb testing.TB, runtime, name, content string) {
	tb.Helper()
	path := filepath.Join(runtime, hookstate.Directory, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		tb.Fatal(err)
	}
}

// reads wants exactly these configurations and no errors.
func reads(tb testing.TB, runtime, name string, want ...hookstate.Config) {
	tb.Helper()
	got, errs := hookstate.Read(runtime, name)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" || len(errs) > 0 {
		tb.Errorf("of %q: %v, (-want +got)\n%s", name, errs, diff)
	}
}

func TestOf(t *testing.T) {
	t.Parallel()
	one, two := netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("198.51.100.10/24")
	unmasked := dispatcher.Route{Destination: netip.MustParsePrefix("10.8.1.1/16"), Gateway: gateway}
	for name, c := range map[string]struct {
		caller    string
		family    routing.Family
		said      dispatcher.Config
		automatic bool
		routes    string
	}{
		"one address":           {"dhclient", routing.IPv4, dispatcher.Config{Addresses: []netip.Prefix{one}, Gateways: []netip.Addr{gateway, one.Addr()}, Routes: []dispatcher.Route{unmasked}}, true, "[10.8.0.0/16 192.0.2.1 192.0.2.10 0 0.0.0.0/0 192.0.2.1 192.0.2.10 0]"},
		"two addresses":         {"dhcpcd", routing.IPv4, dispatcher.Config{Addresses: []netip.Prefix{one, two}, Gateways: []netip.Addr{gateway}}, true, "[0.0.0.0/0 192.0.2.1 invalid IP 0]"},
		"IPv6":                  {"dhcpcd", routing.IPv6, dispatcher.Config{Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")}, Gateways: []netip.Addr{server6}}, true, "[::/0 2001:db8::53 invalid IP 0]"},
		"a stanza":              {"ifupdown", routing.IPv4, dispatcher.Config{Addresses: []netip.Prefix{one}}, false, "[]"},
		"a stanza left to dhcp": {"ifupdown", routing.IPv4, dispatcher.Config{}, true, "[]"},
	} {
		e := dispatcher.Event{Caller: c.caller, Interface: "wan0", Part: "p", Configs: map[routing.Family]dispatcher.Config{c.family: c.said}}
		got := hookstate.Of(e, 7, since)
		var routes []string
		for _, c := range got {
			for _, r := range c.Routes {
				routes = append(routes, fmt.Sprint(r.Destination, r.Gateway, r.Source, r.Metric))
			}
		}
		if len(got) != 1 || got[0].Family != c.family || got[0].Automatic != c.automatic || fmt.Sprint(routes) != c.routes {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		if g := got[0]; g.Interface != "wan0" || g.Index != 7 || g.Caller != c.caller || g.Part != "p" || !g.Since.Equal(since) || g.Check() != nil {
			t.Errorf("%s: %+v, %v", name, g, g.Check())
		}
	}
	both := map[routing.Family]dispatcher.Config{routing.IPv6: {}, routing.IPv4: {}}
	if got := hookstate.Of(dispatcher.Event{Configs: both}, 7, since); len(got) != 2 || got[0].Family != routing.IPv4 {
		t.Errorf("of both families: %+v", got)
	}
	if got := hookstate.Of(dispatcher.Event{}, 7, since); got != nil {
		t.Errorf("of none: %+v", got)
	}
}

func TestKnown(t *testing.T) {
	t.Parallel()
	c := lease("wan0")
	c.Routes = append(c.Routes, hookstate.Route{Destination: netip.MustParsePrefix("10.8.0.0/16")})
	want := []routing.Route{
		{Family: routing.IPv4, Destination: any4, Gateway: gateway, PreferredSource: c.Routes[0].Source, Type: routing.RouteUnicast},
		{Family: routing.IPv4, Destination: c.Routes[1].Destination, Type: routing.RouteUnicast, Scope: routing.ScopeLink},
	}
	if got := c.Known(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	c = hookstate.Config{Family: routing.IPv6, Routes: []hookstate.Route{{Destination: routing.IPv6.Any()}}}
	if got := c.Known(); len(got) != 1 || got[0].Scope != 0 {
		t.Errorf("IPv6 knows no scopes: %+v", got)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	if err := lease("wan0").Check(); err != nil {
		t.Fatal(err)
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	zoned := netip.MustParseAddr("fe80::1%wan0")
	for name, c := range map[string]struct {
		spoil func(*hookstate.Config)
		want  string
	}{
		"no name":             {func(c *hookstate.Config) { c.Interface = "" }, "is not the name of an interface"},
		"16 bytes":            {func(c *hookstate.Config) { c.Interface = strings.Repeat("x", 16) }, "is not the name of an interface"},
		"a path":              {func(c *hookstate.Config) { c.Interface = "../x" }, "is not the name of an interface"},
		"a zero byte":         {func(c *hookstate.Config) { c.Interface = "a\x00b" }, "is not the name of an interface"},
		"no text":             {func(c *hookstate.Config) { c.Interface = "wan\xff" }, "it is no UTF-8"},
		"no index":            {func(c *hookstate.Config) { c.Index = 0 }, "not the index"},
		"a negative index":    {func(c *hookstate.Config) { c.Index = -1 }, "not the index"},
		"no family":           {func(c *hookstate.Config) { c.Family = 0 }, "not an address family"},
		"another family":      {func(c *hookstate.Config) { c.Family = routing.IPv6 }, "not an address of ipv6"},
		"no caller":           {func(c *hookstate.Config) { c.Caller = "" }, "do not name a caller"},
		"a long part":         {func(c *hookstate.Config) { c.Part = strings.Repeat("x", 250) }, "do not name a caller"},
		"a part that grows":   {func(c *hookstate.Config) { c.Part = strings.Repeat("/", 80) }, "do not name a caller"},
		"a part of no text":   {func(c *hookstate.Config) { c.Part = "\xff" }, "do not name a caller"},
		"many delegated":      {func(c *hookstate.Config) { c.Delegated = make([]netip.Prefix, dispatcher.MaxDelegated+1) }, "more than 64 delegated prefixes"},
		"delegated, v6 in v4": {func(c *hookstate.Config) { c.Delegated = []netip.Prefix{netip.MustParsePrefix("2001:db8:b::/56")} }, "2001:db8:b::/56 is not a delegated prefix of ipv4"},
		"delegated, wide":     {func(c *hookstate.Config) { c.Delegated = []netip.Prefix{any4} }, "0.0.0.0/0 is not a delegated prefix"},
		"delegated, host":     {func(c *hookstate.Config) { c.Delegated = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")} }, "10.1.2.3/16 is not a delegated prefix"},
		"many addresses":      {func(c *hookstate.Config) { c.Addresses = make([]netip.Prefix, hookstate.MaxItems+1) }, "more than 1024"},
		"many routes":         {func(c *hookstate.Config) { c.Routes = make([]hookstate.Route, hookstate.MaxItems+1) }, "more than 1024"},
		"many servers":        {func(c *hookstate.Config) { c.Servers = make([]netip.Addr, hookstate.MaxItems+1) }, "more than 1024"},
		"many domains":        {func(c *hookstate.Config) { c.Domains = make([]string, hookstate.MaxItems+1) }, "more than 1024"},
		"no address":          {func(c *hookstate.Config) { c.Addresses = []netip.Prefix{{}} }, "not an address of ipv4"},
		"a mapped address":    {func(c *hookstate.Config) { c.Addresses = []netip.Prefix{netip.PrefixFrom(mapped, 120)} }, "not an address of ipv4"},
		"no destination":      {func(c *hookstate.Config) { c.Routes[0].Destination = netip.Prefix{} }, "not a destination"},
		"not a network":       {func(c *hookstate.Config) { c.Routes[0].Destination = netip.MustParsePrefix("10.0.0.1/8") }, "not a destination"},
		"a destination apart": {func(c *hookstate.Config) { c.Routes[0].Destination = routing.IPv6.Any() }, "not a destination"},
		"a gateway apart":     {func(c *hookstate.Config) { c.Routes[0].Gateway = server6 }, "not a route of ipv4"},
		"a mapped gateway":    {func(c *hookstate.Config) { c.Routes[0].Gateway = mapped }, "not a route of ipv4"},
		"a source apart":      {func(c *hookstate.Config) { c.Routes[0].Source = server6 }, "not a route of ipv4"},
		"no server":           {func(c *hookstate.Config) { c.Servers = []netip.Addr{{}} }, "not the address of a server"},
		"a server apart":      {func(c *hookstate.Config) { c.Servers = []netip.Addr{server6} }, "not the address of a server"},
		"a zone": {func(c *hookstate.Config) {
			*c = hookstate.Config{Interface: "wan0", Index: 7, Caller: "x", Family: routing.IPv6, Routes: []hookstate.Route{{Destination: routing.IPv6.Any(), Gateway: zoned}}}
		}, "not a route of ipv6"},
		"more than is read": {func(c *hookstate.Config) { c.Domains = []string{strings.Repeat("x", hookstate.MaxSize)} }, "bytes"},
	} {
		spoiled := lease("wan0")
		c.spoil(&spoiled)
		runtime := t.TempDir()
		if err := hookstate.Put(runtime, spoiled); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		reads(t, runtime, "")
	}
}

// A name as the kernel allows it comes back, and is not another one's.
func TestNames(t *testing.T) {
	t.Parallel()
	runtime := filepath.Join(t.TempDir(), "made", "by", "it")
	var all []hookstate.Config
	for _, name := range []string{"wan0", "a%b", "a%25b", "a@ipv4@dhcpcd", "a+b", ".hidden", "äääääääx", `"\`, "x.json", "<>&\u2028", "-"} {
		c := lease(name)
		part := c
		part.Part = "a@b/c"
		v6 := hookstate.Config{Interface: name, Index: 7, Caller: "dhclient", Family: routing.IPv6, Since: since}
		put(t, runtime, v6, part, c)
		reads(t, runtime, name, c, part, v6)
		all = append(all, c, part, v6)
	}
	slices.SortFunc(all, hookstate.Compare)
	reads(t, runtime, "", all...)
	info, err := os.Stat(filepath.Join(runtime, hookstate.Directory, lease("a%b").File()))
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	isDHCP := func(c hookstate.Config) bool { return c.Part == "" && c.Family == routing.IPv4 }
	if err := hookstate.Remove(runtime, "wan0", isDHCP); err != nil {
		t.Fatal(err)
	}
	if err := hookstate.Remove(runtime, "none", isDHCP); err != nil {
		t.Error(err)
	}
	all = slices.DeleteFunc(all, func(c hookstate.Config) bool { return c.Interface == "wan0" && isDHCP(c) })
	reads(t, runtime, "", all...)
}

// What no hook wrote is left out and where it is, and hurts nobody else.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(lease("wan0"))
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	contents := map[string]string{
		"empty": "", "cut off": good[:len(good)-1], "no object": "[]", "null": "null", "a wrong type": `{"interface":7}`,
		"no address": `{"addresses":["x"]}`, "a huge index": `{"index":1e99}`, "another's": strings.Replace(good, "wan0", "wan1", 1),
		"more than is believed": strings.Repeat(" ", hookstate.MaxSize) + good,
	}
	spoilers := map[string]func(path string) error{
		"a directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"a link": func(path string) error {
			return os.Symlink(strings.Replace(filepath.Base(path), "wan0", "wan1", 1), path)
		},
		"a pipe": func(path string) error { return unix.Mkfifo(path, 0o644) },
		"a pipe that somebody holds open": func(path string) error {
			err := unix.Mkfifo(path, 0o644)
			f, failed := os.OpenFile(path, os.O_RDWR, 0)
			t.Cleanup(func() { _ = f.Close() })
			return errors.Join(err, failed)
		},
	}
	for name, content := range contents {
		spoilers[name] = func(path string) error { return os.WriteFile(path, []byte(content), 0o644) }
	}
	for name, spoil := range spoilers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runtime := t.TempDir()
			put(t, runtime, lease("wan1"))
			path := filepath.Join(runtime, hookstate.Directory, lease("wan0").File())
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			if got, errs := hookstate.Read(runtime, ""); len(got) != 1 || got[0].Interface != "wan1" || len(errs) != 1 || !strings.Contains(errs[0].Error(), "to fix: remove it") {
				t.Errorf("%+v, %v", got, errs)
			}
			reads(t, runtime, "wan1", lease("wan1"))
			if err := hookstate.Remove(runtime, "wan0", func(hookstate.Config) bool { return true }); err == nil {
				t.Error("what was not read was ended")
			}
			if _, err := os.Lstat(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// A Put that was killed halfway leaves the one before, and a file that is nobody's.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"wan0", ".hidden"} {
		runtime := t.TempDir()
		put(t, runtime, lease(name))
		directory := filepath.Join(runtime, hookstate.Directory)
		f, err := renameio.TempFile(directory, filepath.Join(directory, lease(name).File()))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(`{"interface":`)
		if err := errors.Join(err, f.File.Close()); err != nil {
			t.Fatal(err)
		}
		reads(t, runtime, "", lease(name))
		reads(t, runtime, name, lease(name))
	}
}

func TestNoDirectory(t *testing.T) {
	t.Parallel()
	runtime := t.TempDir()
	reads(t, runtime, "")
	if err := os.WriteFile(filepath.Join(runtime, hookstate.Directory), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := hookstate.Put(runtime, lease("wan0")); err == nil || !strings.Contains(err.Error(), "storing the report of dhclient on wan0") {
		t.Errorf("where a file is in the way: %v", err)
	}
	if _, errs := hookstate.Read(runtime, ""); len(errs) != 1 {
		t.Errorf("where a file is in the way: %v", errs)
	}
}

// smallDisk is a file system of a few pages that is mounted nowhere, so that
// nothing is left of it.
func smallDisk(t *testing.T) string {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "size", "64k"), unix.FsconfigCreate(fs)); err != nil {
		t.Fatal(err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(mount) })
	return fmt.Sprintf("/proc/self/fd/%d", mount)
}

func TestDiskIsFull(t *testing.T) {
	t.Parallel()
	runtime := smallDisk(t)
	put(t, runtime, lease("wan0"))
	if err := os.WriteFile(filepath.Join(runtime, "filler"), make([]byte, 1<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	renewed := lease("wan0")
	renewed.Domains = []string{"example.org"}
	err := hookstate.Put(runtime, renewed)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "storing the report of dhclient on wan0") {
		t.Errorf("%v", err)
	}
	reads(t, runtime, "", lease("wan0"))
	if entries, err := os.ReadDir(filepath.Join(runtime, hookstate.Directory)); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	// To end it needs no room.
	if err := hookstate.Remove(runtime, "wan0", func(hookstate.Config) bool { return true }); err != nil {
		t.Error(err)
	}
	reads(t, runtime, "")
}

// TestLinkElsewhere: the directory belongs to the service's user, who may not have
// root write or remove anything elsewhere.
func TestLinkElsewhere(t *testing.T) {
	t.Parallel()
	elsewhere, runtime := t.TempDir(), t.TempDir()
	put(t, elsewhere, lease("wan0"))
	if err := os.Symlink(filepath.Join(elsewhere, hookstate.Directory), filepath.Join(runtime, hookstate.Directory)); err != nil {
		t.Fatal(err)
	}
	if err := hookstate.Put(runtime, lease("wan1")); err == nil {
		t.Error("written elsewhere")
	}
	if err := hookstate.Remove(runtime, "wan0", func(hookstate.Config) bool { return true }); err == nil {
		t.Error("removed elsewhere")
	}
	reads(t, elsewhere, "", lease("wan0"))
}

func FuzzRead(f *testing.F) {
	for _, c := range []hookstate.Config{lease("wan0"), lease("a%b"), {Interface: ".x", Index: 1, Caller: "c", Part: "@", Family: routing.IPv6}} {
		data, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(append(data[:len(data)-1:len(data)-1], `,"routes":[{"destination":"::/0","gateway":"","source":"::"}],"part":"\ud800"}x`...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		runtime := t.TempDir()
		raw(t, runtime, "wan0@ipv4@dhclient.json", string(data))
		path := filepath.Join(runtime, hookstate.Directory, "wan0@ipv4@dhclient.json")
		all, errs := hookstate.Read(runtime, "")
		if len(all)+len(errs) != 1 {
			t.Errorf("%+v, %v", all, errs)
		}
		c, err := hookstate.ReadFile(runtime, filepath.Base(path))
		if err != nil || len(data) > hookstate.MaxSize/8 { // JSON with escapes is longer.
			return
		}
		if err := errors.Join(c.Check(), os.Remove(path)); err != nil {
			t.Fatal(err)
		}
		put(t, runtime, c)
		reads(t, runtime, c.Interface, c)
		c.Known()
	})
}

// TestDelegated: what dhcpcd says of delegated prefixes is stored, is news when it
// changes, and ends with the lease.
func TestDelegated(t *testing.T) {
	t.Parallel()
	runtime := t.TempDir()
	tell := func(reason string, more dispatcher.Environment) []hookstate.Config {
		env := dispatcher.Environment{"interface": "wan0", "reason": reason}
		maps.Copy(env, more)
		e, err := dispatcher.Parse([]string{"dhcpcd"}, env)
		if err != nil {
			t.Fatal(err)
		}
		return hookstate.Of(e, 7, since)
	}
	one := tell("BOUND6", dispatcher.Environment{"new_dhcp6_ia_pd1_prefix1": "2001:db8:a::", "new_dhcp6_ia_pd1_prefix1_length": "56"})
	two := tell("RENEW6", dispatcher.Environment{"new_dhcp6_ia_pd1_prefix1": "2001:db8:b::", "new_dhcp6_ia_pd1_prefix1_length": "60"})
	if len(one) != 1 || len(two) != 1 || !slices.Equal(one[0].Delegated, []netip.Prefix{netip.MustParsePrefix("2001:db8:a::/56")}) {
		t.Fatalf("%+v, %+v", one, two)
	}
	put(t, runtime, one...)
	store, errs := hookstate.Open(runtime)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	store.Take()
	reads(t, runtime, "wan0", one...)
	put(t, runtime, two...)
	if errs := store.Reload("wan0"); len(errs) > 0 || !slices.Equal(store.Take(), []string{"wan0"}) {
		t.Errorf("another delegated prefix is no news: %v", errs)
	}
	if got, _ := store.Of("wan0"); len(got) != 1 || !slices.Equal(got[0].Delegated, two[0].Delegated) {
		t.Errorf("stored %+v", got)
	}
	put(t, runtime, tell("RENEW6", nil)...)
	store.Reload("wan0")
	if got, _ := store.Of("wan0"); len(got) != 1 || len(got[0].Delegated) != 0 {
		t.Errorf("a prefix that is not delegated any more stays: %+v", got)
	}
}
