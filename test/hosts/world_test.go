package hosts_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// programs are built from the tree under test, once, unless they exist already, as in a virtual
// machine, where building takes too long.
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(labtest.ProgramsEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "multihomed-hosts")
	if err != nil {
		return "", fmt.Errorf("making a directory for the programs: %w", err)
	}
	build := exec.CommandContext(context.Background(), "go", "build", "-buildvcs=false", "-o", dir+"/", "multihomed/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return dir, labtest.Links(dir)
})

// A listener records packets: a provider's capture or a tunnel.
type listener interface {
	Matching(want func(lab.Packet) bool) ([]lab.Packet, error)
}

// A world is one lab with a host that is being built and asked. Its helpers end
// the test when they fail.
type world struct {
	*lab.Host
	t            *testing.T
	isps         []*lab.ISP
	ears         map[string]listener
	via6         map[string]netip.Addr // the router of each provider's link
	beyond       []netip.Addr          // of networks that main has behind an uplink
	neverDefault []string              // links whose profile sets that
	notes        map[string]string     // what a host's own functions remember
	lanClient    *lab.ISP              // of lan0
	far, near    *lab.Process          // programs of the host and of its neighbour
	speak        func()                // starts them again
	daemon       *lab.Process
	quiet        *quiet
	step         string // the step that the host is at; "" as it was built
	failed       bool   // a phase was wrong
	// product is true from the first start of the daemon to its removal.
	product bool
}

// newWorld opens a lab with NetworkManager and nothing else. What most hosts of
// the table start with is added by providers: isp0 on wan0 and isp1 on wan1, with IPv4 by DHCP and IPv6 by router advertisement. The
// lower the number, the better the metric. Addresses are the same in every lab.
func newWorld(t *testing.T, h Host) *world {
	t.Helper()
	cfg := h.Lab
	cfg.FastDAD = true
	cfg.NMConfig += "\n[keyfile]\nunmanaged-devices=interface-name:tun*;interface-name:wg*;interface-name:docker*;interface-name:br-*;interface-name:veth*;interface-name:vg*\n"
	w := &world{
		Host: labtest.NewHost(t, cfg), t: t,
		ears: map[string]listener{}, via6: map[string]netip.Addr{}, notes: map[string]string{},
	}
	w.quiet = watchRouting(t)
	t.Cleanup(func() {
		if t.Failed() && w.daemon != nil {
			t.Logf("the daemon's log ends:\n%s", lab.Tail(w.daemon.Log(), 15))
		}
	})
	w.must(w.ServeEcho())
	return w
}

// providers connects two providers and activates their links.
func (w *world) providers() {
	w.t.Helper()
	w.provider(lab.DefaultISP(0))
	w.provider(lab.DefaultISP(1))
	w.activate()
}

// provider connects one provider, whose link activate brings up.
func (w *world) provider(cfg lab.ISPConfig, settings ...string) *lab.ISP {
	w.t.Helper()
	isp, err := w.NewISP(w.t.Context(), cfg)
	w.must(err)
	c, err := isp.Capture()
	w.must(err)
	w.ears[isp.Name()] = c
	metric := fmt.Sprint(100 + len(w.isps))
	w.isps = append(w.isps, isp)
	w.must(w.WriteProfile(cfg.Link, cfg.Link, append([]string{
		"ipv4.method=auto", "ipv4.route-metric=" + metric,
		"ipv6.method=auto", "ipv6.route-metric=" + metric, "ipv6.addr-gen-mode=eui64", "ipv6.ip6-privacy=0",
	}, settings...)...))
	return isp
}

// activate brings up the links of the providers and waits for their addresses and
// default routes.
func (w *world) activate() {
	w.t.Helper()
	ctx := w.t.Context()
	w.must(w.ReloadProfiles(ctx))
	errs := make(chan error)
	for _, isp := range w.isps {
		go func() { errs <- w.Up(ctx, isp.Config().Link) }()
	}
	for range w.isps {
		w.must(<-errs)
	}
	for _, isp := range w.isps {
		link := isp.Config().Link
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			if f == lab.IPv6 && !isp.Config().IPv6.IsValid() {
				continue
			}
			_, err := w.WaitAddr(ctx, link, f)
			w.must(err)
			if slices.Contains(w.neverDefault, link) {
				continue
			}
			w.eventually("a default route of "+link, func() error {
				out, err := w.IP(ctx, f4(f), "route", "show", "default", "dev", link)
				if err == nil && !strings.HasPrefix(out, "default") {
					err = errors.New("none yet")
				}
				return err
			})
		}
		w.noteRouter(isp)
	}
}

// noteRouter notes the link-local address of a provider's router.
func (w *world) noteRouter(isp *lab.ISP) {
	w.t.Helper()
	out, err := w.IP(w.t.Context(), "-n", isp.Name(), "-6", "-o", "addr", "show", "dev", "lan", "scope", "link")
	w.must(err)
	text := word(out, "inet6")
	router, err := netip.ParsePrefix(text)
	w.must(err)
	w.via6[isp.Config().Link] = router.Addr()
}

func f4(f lab.Family) string {
	if f == lab.IPv6 {
		return "-6"
	}
	return "-4"
}

// word is what follows a key in the words of a text.
func word(text, key string) string {
	words := strings.Fields(text)
	if i := slices.Index(words, key); i >= 0 && i+1 < len(words) {
		return words[i+1]
	}
	return ""
}

// cleanLo takes the host's own addresses from lo after the test: lo stays.
func (w *world) cleanLo() {
	w.t.Cleanup(func() {
		_, _ = w.IP(w.ctx(), "-4", "addr", "flush", "dev", "lo", "scope", "global")
		for _, f := range []string{"-4", "-6"} {
			_, _ = w.IP(w.ctx(), f, "route", "flush", "table", "local", "type", "local", "dev", "lo", "proto", "boot")
		}
	})
}

// ctx is for what is done after the test.
func (w *world) ctx() context.Context { return context.WithoutCancel(w.t.Context()) }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits for a state that the host reaches by itself.
func (w *world) eventually(what string, f func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), lab.Stretched(15*time.Second))
	defer cancel()
	if err := lab.Eventually(ctx, f); err != nil {
		w.t.Fatalf("waiting for %s: %v", what, err)
	}
}

// ip runs commands of iproute2, one a line.
func (w *world) ip(commands ...string) {
	w.t.Helper()
	for _, c := range commands {
		if _, err := w.IP(w.t.Context(), strings.Fields(c)...); err != nil {
			w.t.Fatal(err)
		}
	}
}

// both runs a command of iproute2 for both families.
func (w *world) both(commands ...string) {
	w.t.Helper()
	for _, c := range commands {
		w.ip("-4 "+c, "-6 "+c)
	}
}

// run runs a program of the host.
func (w *world) run(program string, args ...string) string {
	w.t.Helper()
	out, err := w.Run(w.t.Context(), program, args...)
	w.must(err)
	return out
}

// nft loads a file of nftables.
func (w *world) nft(text string) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "rules.nft")
	w.must(os.WriteFile(path, []byte(text), 0o600))
	w.run("nft", "-f", path)
}

// sysctl sets kernel parameters for the rest of the test: key, value, ...
func (w *world) sysctl(keyValues ...string) {
	w.t.Helper()
	for i := 0; i+1 < len(keyValues); i += 2 {
		key := keyValues[i]
		old, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
		w.must(err)
		w.must(w.Sysctl(key, keyValues[i+1]))
		w.t.Cleanup(func() {
			// A device's own parameter goes with it.
			_ = w.Sysctl(key, strings.TrimSpace(string(old)))
		})
	}
}

// profile adds a profile of NetworkManager and activates it.
func (w *world) profile(name string, settings ...string) {
	w.t.Helper()
	w.must(w.WriteProfile(name, name, settings...))
	w.must(w.ReloadProfiles(w.t.Context()))
	w.must(w.WaitDeviceState(w.t.Context(), name, "disconnected"))
	w.must(w.Up(w.t.Context(), name))
}

// tun creates a tunnel with addresses, as a VPN client does.
func (w *world) tun(name string, addrs ...string) *lab.Tun {
	w.t.Helper()
	tun, err := w.NewTun(name)
	w.must(err)
	w.ears[name] = tun
	for _, a := range addrs {
		w.must(w.AddAddr(name, a))
	}
	return tun
}

// group asks for the interface group of a link.
func group(link string) Question {
	return Fact{"interface group of " + link, func(w *world) string {
		l, err := netlink.LinkByName(link)
		w.must(err)
		return fmt.Sprint(l.Attrs().Group)
	}}
}

// lan connects a network of the host, lan0, whose other end, a namespace, is one client
// of it: the address of client, with the host as its router.
func (w *world) lan(client netip.Prefix, router netip.Addr, advertises *lab.RA) *lab.ISP {
	w.t.Helper()
	isp, err := w.NewISP(w.t.Context(), lab.ISPConfig{
		Name: "client-lan0", Link: "lan0", IPv4: client, NoDHCP: true,
		IPv6: netip.MustParsePrefix("fd07::5/64"), NoRA: advertises == nil, RA: advertises,
	})
	w.must(err)
	// What is on the internet for the others is not here.
	_, err = w.IP(w.t.Context(), "-n", isp.Name(), "addr", "del", lab.InternetAddr4.String()+"/32", "dev", "lo")
	w.must(err)
	_, err = w.IP(w.t.Context(), "-n", isp.Name(), "-6", "addr", "del", lab.InternetAddr6.String()+"/128", "dev", "lo")
	w.must(err)
	w.must(isp.Namespace().AddRoute(lab.DefaultVia(router), "lan"))
	c, err := isp.Capture()
	w.must(err)
	w.ears[isp.Name()] = c
	return isp
}

// addr is the first address of a link.
func (w *world) addr(link string, f lab.Family) netip.Addr {
	w.t.Helper()
	list, err := w.Addrs(link, f)
	w.must(err)
	if len(list) == 0 {
		return netip.Addr{}
	}
	return list[0].Addr()
}

// start starts the daemon and returns when it says that it is ready.
func (w *world) start() {
	w.t.Helper()
	dir, err := programs()
	w.must(err)
	w.daemon, err = w.Start(lab.ProcessConfig{Path: filepath.Join(dir, "multihomed"), Notify: true})
	w.must(err)
	w.product = true
	ctx, cancel := context.WithTimeout(w.t.Context(), lab.Stretched(20*time.Second))
	defer cancel()
	if _, err := w.daemon.WaitNotify(ctx, "READY=1"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) stop() {
	w.t.Helper()
	w.must(w.daemon.Stop(w.t.Context()))
}

// remove removes the product, and reports its leftovers.
func (w *world) remove() []string {
	w.t.Helper()
	w.stop()
	dir, err := programs()
	w.must(err)
	w.run(filepath.Join(dir, "multihomectl"), "flush", "--yes")
	w.product = false
	left, err := w.Leftovers()
	w.must(err)
	group, err := w.IP(w.t.Context(), "-br", "link", "show", "group", "28008")
	w.must(err)
	for line := range strings.Lines(group) {
		left = append(left, "group 28008: "+strings.TrimSpace(line))
	}
	lo, err := w.IP(w.t.Context(), "link", "show", "lo")
	w.must(err)
	if strings.Contains(lo, "altname") {
		left = append(left, lo)
	}
	return left
}
