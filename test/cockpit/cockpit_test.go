package cockpit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/machine"
	"multihomed/test/machine/machinetest"
)

const (
	user, password = "admin", "correct horse battery staple"
	origin         = "127.0.0.1:9090"
	// Names of an interface and a profile that would be markup if the page let them.
	hostileLink, hostileProfile = "<s>", "<img src=x onerror=alert(1)>"
)

// A debian is a whole Debian with two providers, Cockpit and the packages of this tree.
type debian struct {
	*machine.Machine
	t    *testing.T
	isps []*lab.ISP
}

func (d *debian) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// run runs a program in the machine.
func (d *debian) run(args ...string) string {
	d.t.Helper()
	out, err := d.Run(d.t.Context(), args...)
	d.must(err)
	return strings.TrimSpace(out)
}

func (d *debian) eventually(f func() error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), lab.Stretched(40*time.Second))
	defer cancel()
	d.must(lab.Eventually(ctx, f))
}

// A status is what multihomectl shows.
type status struct {
	OK       bool
	Links    []struct{ Interface string }
	Failover struct {
		Uplinks []struct {
			Interface, Family, State string
			Since                    time.Time
		}
	}
}

func (d *debian) status() (s status, err error) {
	out, err := d.Run(d.t.Context(), "sh", "-c", "multihomectl status --json || :")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// newDebian builds the packages, and installs them as a user does.
func newDebian(t *testing.T) *debian {
	t.Helper()
	dist := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "make", "-C", "../..", "deb", "DIST="+dist, "BIN="+filepath.Join(dist, "bin")).CombinedOutput(); err != nil {
		t.Fatalf("make deb: %v\n%s", err, lab.Tail(string(out), 30))
	}
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true, FastDAD: true})
	d := &debian{t: t, Machine: machinetest.New(t, machine.Config{Release: release()})}
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Resolver, cfg.Wire = true, n == 0
		d.isps = append(d.isps, labtest.NewISP(t, host, cfg))
	}
	d.must(d.PowerOn(t.Context()))
	d.run("useradd", "-m", "-s", "/bin/bash", "-G", "sudo", user)
	d.run("sh", "-c", fmt.Sprintf("echo '%s:%s' | chpasswd", user, password))
	for _, pattern := range []string{"multihomed_*.deb", "cockpit-multihomed_*.deb"} {
		found, err := filepath.Glob(filepath.Join(dist, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("packages: %v (%v)", found, err)
		}
		d.must(d.CopyIn(found[0], "/root/"+strings.TrimSuffix(pattern, "_*.deb")+".deb", 0o644))
	}
	d.run("apt-get", "install", "-y", "-q", "--no-install-recommends", "/root/multihomed.deb", "/root/cockpit-multihomed.deb")
	// A third link, with the worst names. NetworkManager shall find its profile, and make none itself.
	d.run("nmcli", "connection", "add", "type", "ethernet", "con-name", hostileProfile, "ifname", hostileLink, "ipv4.method", "manual", "ipv4.addresses", "10.66.6.1/24", "ipv6.method", "disabled")
	d.run("ip", "link", "add", hostileLink, "type", "veth", "peer", "name", "peer0")
	d.run("ip", "link", "set", "peer0", "up")
	d.eventually(func() error { // NetworkManager may not know it yet.
		_, err := d.Run(t.Context(), "nmcli", "device", "set", "peer0", "managed", "no")
		return err
	})
	for _, isp := range d.isps {
		link := isp.Link().Name()
		d.run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link, "ipv4.may-fail", "no", "ipv6.may-fail", "no")
		d.must(d.MoveLink(link))
	}
	d.eventually(func() error {
		s, err := d.status()
		if err != nil {
			return err
		}
		up := 0
		for _, h := range s.Failover.Uplinks {
			if h.State == "up" {
				up++
			}
		}
		if !s.OK || len(s.Links) != 3 || up != 4 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return d
}

// enter logs in by Cockpit's own page.
func (d *debian) enter(b *browser) {
	d.t.Helper()
	b.do(
		chromedp.Navigate("http://"+origin+"/"),
		chromedp.WaitVisible("#login-user-input"),
		chromedp.SendKeys("#login-user-input", user),
		chromedp.SendKeys("#login-password-input", password),
		chromedp.KeyEvent("\r"),
		chromedp.WaitVisible("#nav-system"),
	)
}

// switched opens the dialog of a button by the keyboard, and agrees.
func (d *debian) switched(b *browser, key, title string) {
	d.t.Helper()
	b.tabTo(fmt.Sprintf("e.dataset.key === %q", key))
	b.press("\r")
	b.until(`document.getElementById("confirm").open`)
	if text := b.text("confirm-title"); text != title {
		d.t.Errorf("it asks %q, not %q", text, title)
	}
	b.tabTo(`e.id === "confirm-yes"`)
	b.press("\r")
	b.until(`!document.getElementById("confirm").open`)
}

// rules counts the rules of multihomed in the kernel that have a word.
func (d *debian) rules(word string) int {
	d.t.Helper()
	n := 0
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(d.run("ip", "-N", family, "rule")) {
			if strings.Contains(line, "proto 150") && strings.Contains(" "+line, " "+word) {
				n++
			}
		}
	}
	return n
}

// TestCockpit goes through the page on a Debian, as a user in a browser does.
func TestCockpit(whole *testing.T) {
	t := whole // of the step
	d := newDebian(t)
	b := open(t, d.Leader())
	b.look(1280, "light")
	d.enter(b)
	b.do(chromedp.Navigate("http://" + origin + "/multihomed"))
	b.until(`!document.getElementById("content").hidden`)

	step := func(name string, f func()) {
		passed := whole.Run(name, func(part *testing.T) {
			t, d.t, b.t = part, part, part
			f()
			b.quiet(origin)
		})
		t, d.t, b.t = whole, whole, whole
		if !passed {
			b.picture("failed")
			t.FailNow()
		}
	}
	step("links", func() {
		// On a busy machine an uplink is suspect for a moment, or loses a probe.
		for _, want := range []string{"wan0", "wan1", "Uplink", "Up", "no loss", d.isps[0].Link().Name(), hostileLink, hostileProfile, "Local", "10.66.6.1"} {
			b.until(fmt.Sprintf(`document.getElementById("links").innerText.includes(%q)`, want))
		}
		b.until(`document.getElementById("unbound").innerText.includes("leaves by wan0")`)
		b.until(`document.querySelector("#graph-view img")?.naturalWidth > 100`)
	})
	step("limited access", func() {
		b.until(`!document.getElementById("rights").hidden && document.querySelector("[data-key='switch all']").disabled`)
		b.accessible("limited access")
		b.picture("cockpit-limited")
		if _, err := script[any](b, 0, `document.querySelector("button.ct-locked").click()`); err != nil {
			t.Fatal(err)
		}
		const field = "#switch-to-admin-access-password"
		b.do(chromedp.WaitVisible(field), chromedp.SendKeys(field, password), chromedp.KeyEvent("\r"))
		b.until(`document.getElementById("rights").hidden && !document.querySelector("[data-key='switch all']").disabled`)
	})
	step("explain", func() {
		to := lab.InternetAddr4.String()
		b.tabTo(`e.id === "destination"`)
		b.do(chromedp.KeyEvent(to))
		b.press("\r")
		b.until(`!document.getElementById("answer").hidden`)
		var said struct{ Summary string }
		d.must(json.Unmarshal([]byte(d.run("setpriv", "--reuid", user, "--clear-groups", "multihomectl", "explain", "--json", to)), &said))
		if answer := b.text("answer"); said.Summary == "" || !strings.Contains(answer, said.Summary) || !strings.Contains(answer, "The kernel says the same: ") {
			t.Errorf("multihomectl says %q, and the page\n%s", said.Summary, answer)
		}
		b.until(fmt.Sprintf(`document.querySelector("#graph-view img").alt.includes("%s uid")`, to))
	})
	step("findings", func() {
		b.tabTo(`e.id === "diagnose"`)
		d.eventually(func() error {
			b.press("\r")
			b.until(`document.getElementById("diagnosis").innerText.includes("deeper check") && !document.getElementById("diagnose").hasAttribute("aria-busy")`)
			// The lab has one file of DNS servers for two providers. While traffic has moved on a busy machine, it suits.
			text := b.text("diagnosis")
			if !strings.Contains(text, "The DNS server "+d.isps[1].Resolver4.String()) || !strings.Contains(text, "ip -4 route add") {
				return fmt.Errorf("the deeper check found\n%s", text)
			}
			return nil
		})
	})
	step("a link off and on", func() {
		if n := d.rules("oif wan1"); n == 0 {
			t.Fatal("there are no rules to remove")
		}
		d.switched(b, "switch wan1", "Switch wan1 off?")
		if n := d.rules("oif wan1"); n != 0 {
			t.Errorf("%d rules are left", n)
		}
		b.until(`document.getElementById("links").innerText.includes("Switched off") && document.activeElement.dataset.key === "switch wan1"`)
		if text := b.text("told-text"); !strings.HasPrefix(text, "wan1 is switched off") {
			t.Errorf("it says %q", text)
		}
		d.switched(b, "switch wan1", "Switch wan1 on?")
		b.until(`!document.getElementById("links").innerText.includes("Switched off")`)
		if n := d.rules("oif wan1"); n == 0 {
			t.Error("there are no rules again")
		}
	})
	step("all off and on", func() {
		d.switched(b, "switch all", "Switch multihomed off on this host?")
		b.until(`document.getElementById("headline").innerText.includes("multihomed is switched off")`)
		if n := d.rules(""); n != 0 {
			t.Errorf("%d rules are left", n)
		}
		b.accessible("off")
		d.switched(b, "switch all", "Switch multihomed on?")
		b.until(`document.querySelectorAll(".links > tbody").length === 3`)
	})
	// dies has wan0 die, and measures when the page shows that.
	dies := func(how string, kill func()) {
		b.until(`document.getElementById("headline").innerText.includes("All links work as planned")`)
		on[any](b, `window.shown = new Promise(resolve => new MutationObserver(() => {
			if (document.getElementById("links").innerText.includes("Down")) resolve(Date.now());
		}).observe(document.getElementById("links"), {childList: true, subtree: true, characterData: true})); null`)
		killed := time.Now()
		kill()
		shown := time.UnixMilli(int64(on[float64](b, "window.shown")))
		b.until(`document.getElementById("unbound").innerText.includes("leaves by wan1")`)
		s, err := d.status()
		d.must(err)
		for _, u := range s.Failover.Uplinks {
			if u.Interface == "wan0" && u.State == "down" {
				t.Logf("%s: %s, the daemon judges after %v, and the page shows it after %v", u.Family, how, u.Since.Sub(killed), shown.Sub(killed))
			}
		}
	}
	step("a link dies silently", func() {
		wire := d.isps[0].Link().Wire()
		dies("the provider is silent", func() { wire.Break(lab.Silent) })
		wire.Repair()
		// Else it recovers for a while.
		d.run("multihomectl", "failover", "reset", "wan0")
	})
	step("a link dies", func() {
		dies("the carrier goes", func() { d.must(d.isps[0].Link().SetCarrier(false)) })
		b.accessible("a dead link")
		b.picture("cockpit-dead")
	})
	step("the daemon goes and comes", func() {
		d.run("systemctl", "stop", "multihomed.service")
		b.until(`document.getElementById("headline").innerText.includes("multihomed is not running") && document.getElementById("content").hidden`)
		d.must(d.isps[0].Link().SetCarrier(true))
		d.run("systemctl", "start", "multihomed.service")
		b.until(`!document.getElementById("content").hidden && document.querySelectorAll(".links > tbody").length === 3`)
		// It stays a dead link to the new daemon until it has worked for a while.
		b.until(`/wan0 .*is recovering|All links work as planned/.test(document.getElementById("headline").innerText)`)
	})
	step("by itself", func() {
		// Without the shell around it the page has the whole width of the window.
		b.do(chromedp.Navigate("http://" + origin + "/cockpit/@localhost/multihomed/index.html"))
		b.until(`!document.getElementById("content").hidden && document.querySelector("#graph-view img")?.naturalWidth > 100`)
		for _, width := range []int64{360, 1280} {
			for _, theme := range []string{"light", "dark"} {
				b.look(width, theme)
				b.until(fmt.Sprintf(`document.documentElement.classList.contains("pf-v6-theme-dark") === %t`, theme == "dark"))
				b.accessible(fmt.Sprintf("%d, %s", width, theme))
				b.picture(fmt.Sprintf("real-%d-%s", width, theme))
			}
		}
	})
}
