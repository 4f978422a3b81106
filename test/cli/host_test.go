// Package integration_test runs multihomectl on a real NetworkManager, as a user
// does.
package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/cli"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// A host is the lab's, with two providers, the programs under test and a prober. It has
// no configuration: everything is where it is on a real host.
type host struct {
	*lab.Host
	t              *testing.T
	daemon, prober *lab.Process
}

// alien is an interface that NetworkManager leaves alone, where a test makes it.
const alien = "ppp7"

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{Host: labtest.NewHost(t, lab.HostConfig{
		FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:" + alien,
	}), t: t}
	for n, name := range []string{"wan0", "wan1"} {
		labtest.NewISP(t, h.Host, lab.DefaultISP(n))
		h.must(h.AddProfile(t.Context(), name, name))
		h.up(name)
	}
	return h
}

// up activates a profile, and waits until its interface has addresses and default routes. One family is
// enough for NetworkManager; later releases probe an IPv4 address that DHCP gave before they use it (RFC
// 5227).
func (h *host) up(name string) {
	h.t.Helper()
	h.must(h.Up(h.t.Context(), name))
	for flag, f := range map[string]lab.Family{"-4": lab.IPv4, "-6": lab.IPv6} {
		_, err := h.WaitAddr(h.t.Context(), name, f)
		h.must(err)
		labtest.Eventually(h.t, func() error {
			out, err := h.IP(h.t.Context(), flag, "route", "show", "default", "dev", name)
			if err == nil && out == "" {
				err = fmt.Errorf("%s has no default route of %v", name, f)
			}
			return err
		})
	}
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := labtest.Build(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts the daemon and waits until everything is active.
func (h *host) start() {
	h.t.Helper()
	h.launch()
	h.settle()
}

// launch starts the daemon and waits until it is ready.
func (h *host) launch() {
	h.t.Helper()
	var err error
	if h.prober == nil {
		h.prober, err = h.StartProber(h.t.Context(), program(h.t, "multihomed"), "GORACE=halt_on_error=1 atexit_sleep_ms=0")
		h.must(err)
	}
	h.daemon, err = h.Start(lab.ProcessConfig{Path: program(h.t, "multihomed"), Notify: true})
	h.must(err)
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	_, err = h.daemon.WaitNotify(ctx, "READY=1")
	h.must(err)
}

// settle waits until status has nothing to complain about.
func (h *host) settle() {
	h.t.Helper()
	labtest.Eventually(h.t, func() error {
		r := h.ctl("status")
		if r.status != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

func (h *host) stop() {
	h.t.Helper()
	h.must(h.daemon.Stop(h.t.Context()))
}

// A result is what a run of multihomectl gave.
type result struct {
	out, err string
	status   int
}

func (r result) String() string {
	return fmt.Sprintf("status %d\n%s%s", r.status, r.out, r.err)
}

// ctl runs multihomectl as root.
func (h *host) ctl(args ...string) result { return h.as(0, args...) }

// nobody is a user without capabilities.
const nobody = 65534

// as runs multihomectl as a user.
func (h *host) as(uid uint32, args ...string) result {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), program(h.t, "multihomectl"), args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TZ=UTC", "HOME=/", "GORACE=atexit_sleep_ms=0")
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	err := cmd.Run()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		h.t.Fatal(err)
	}
	r := result{out: out.String(), err: stderr.String(), status: cmd.ProcessState.ExitCode()}
	if strings.Contains(r.err, "DATA RACE") {
		h.t.Error(r.err)
	}
	return r
}

// status runs `multihomectl status --json`.
func (h *host) status() cli.Status {
	h.t.Helper()
	return h.parse(h.ctl("status", "--json"))
}

func (h *host) parse(r result) cli.Status {
	h.t.Helper()
	var s cli.Status
	decoder := json.NewDecoder(strings.NewReader(r.out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		h.t.Fatalf("%v in %s", err, r)
	}
	h.must(schematest.Check("status", []byte(r.out)))
	if s.OK != (r.status == 0) {
		h.t.Errorf("ok is %v in %s", s.OK, r)
	}
	return s
}

// ip runs ip(8).
func (h *host) ip(args ...string) string {
	h.t.Helper()
	out, err := h.IP(h.t.Context(), args...)
	h.must(err)
	return out
}
