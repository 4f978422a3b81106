package cockpit_test

import (
	"context"
	"encoding/json"
	"errors"
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

// status is what multihomectl shows.
func (d *debian) status() (s struct {
	OK    bool
	Links []struct{ Interface string }
	Off   *struct{ By string }
	Links2 []struct{ Interface string } `json:"off_links"`
	Failover struct {
		Uplinks []struct {
			Interface, Family, State string
			Since                    time.Time
		}
	}
}, err error) {
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
	d := &debian{t: t, Machine: machinetest.New(t, machine.Config{Release: machine.Trixie, Layer: layer})}
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Resolver = true
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
	d.run("nmcli", "device", "set", "peer0", "managed", "no")
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

// TestCockpit goes through the page on a Debian, as a user in a browser does.
func TestCockpit(t *testing.T) {
	d := newDebian(t)
	b := open(t, d.Leader())
	b.look(1280, "light")
	b.do(
		chromedp.Navigate("http://"+origin+"/"),
		chromedp.WaitVisible("#login-user-input"),
		chromedp.SendKeys("#login-user-input", user),
		chromedp.SendKeys("#login-password-input", password),
		chromedp.KeyEvent("\r"),
		chromedp.WaitVisible("#nav-system"),
	)
	b.do(chromedp.Navigate("http://" + origin + "/multihomed"))
	b.until(`!document.getElementById("content").hidden`)
	b.picture("cockpit-limited")
	if len(d.isps) == 0 {
		t.Fatal(errors.New("no"))
	}
	b.quiet(origin)
}
