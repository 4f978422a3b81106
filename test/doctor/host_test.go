package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/doctor"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// A host is the lab's, with two providers on wan0 and wan1 and the daemon.
type host struct {
	*lab.Host
	t *testing.T
	// isps are the providers of wan0 and wan1.
	isps    [2]*lab.ISP
	process *lab.Process
}

// newHost makes a host whose configuration has these lines.
func newHost(t *testing.T, config ...string) *host {
	t.Helper()
	h := &host{Host: labtest.NewHost(t, lab.HostConfig{
		FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:docker*;interface-name:br-*;interface-name:veth*;interface-name:tun*;interface-name:wg*;interface-name:virbr*;interface-name:podman*;interface-name:cni*",
	}), t: t}
	for n, name := range []string{"wan0", "wan1"} {
		h.isps[n] = labtest.NewISP(t, h.Host, lab.DefaultISP(n))
		h.must(h.AddProfile(t.Context(), name, name))
		h.must(h.Up(t.Context(), name))
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			_, err := h.WaitAddr(t.Context(), name, f)
			h.must(err)
		}
	}
	h.must(h.ServeEcho())
	h.must(os.WriteFile("/etc/multihomed/multihomed.toml", []byte(strings.Join(config, "\n")), 0o644))
	h.start()
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) program(name string) string {
	h.t.Helper()
	path, err := labtest.Build(name)
	h.must(err)
	return path
}

// start starts prober and daemon.
func (h *host) start() {
	h.t.Helper()
	_, err := h.StartProber(h.t.Context(), h.program("multihomed"), "GORACE=halt_on_error=1 atexit_sleep_ms=0")
	h.must(err)
	h.startDaemon()
}

// startDaemon starts the daemon, and waits until everything is active.
func (h *host) startDaemon() {
	h.t.Helper()
	var err error
	h.process, err = h.Start(lab.ProcessConfig{Path: h.program("multihomed"), Notify: true})
	h.must(err)
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	_, err = h.process.WaitNotify(ctx, "READY=1")
	h.must(err)
	labtest.Eventually(h.t, func() error {
		if out, err := h.as(0, "status"); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// as runs multihomectl as a user. The error is that of its exit status.
func (h *host) as(uid uint32, args ...string) (string, error) {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), h.program("multihomectl"), args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	err := cmd.Run()
	if strings.Contains(stderr.String(), "DATA RACE") {
		h.t.Error(stderr.String())
	}
	if err != nil {
		err = fmt.Errorf("multihomectl %v: %w: %s", args, err, stderr.String())
	}
	return out.String(), err
}

// doctor runs `multihomectl doctor --json`.
func (h *host) doctor(args ...string) doctor.Report {
	h.t.Helper()
	out, err := h.as(0, append([]string{"doctor", "--json"}, args...)...)
	status, ended := errors.AsType[*exec.ExitError](err)
	if err != nil && !ended {
		h.t.Fatal(err)
	}
	var r doctor.Report
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		h.t.Fatalf("%v in %s", err, out)
	}
	if err := schematest.Check("doctor", []byte(out)); err != nil {
		h.t.Error(err)
	}
	want, got := 0, 0
	if !r.OK {
		want = 1
	}
	if ended {
		got = status.ExitCode()
	}
	if got != want {
		h.t.Errorf("exit status %d, and ok is %v", got, r.OK)
	}
	return r
}

// sh runs a script, also after the test.
func (h *host) sh(script string) {
	h.t.Helper()
	if out, err := h.Run(context.WithoutCancel(h.t.Context()), "sh", "-ec", script); err != nil {
		h.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
}

// sound waits until nothing is found, notices included.
func (h *host) sound(what string) {
	h.t.Helper()
	labtest.Eventually(h.t, func() error {
		if r := h.doctor(); len(r.Findings) > 0 {
			return fmt.Errorf("%s: %s", what, texts(r.Findings))
		}
		return nil
	})
}

// carry waits until packets with the IPv4 addresses of both links leave by them and are answered.
func (h *host) carry(when string) {
	h.t.Helper()
	for i, name := range []string{"wan0", "wan1"} {
		labtest.Eventually(h.t, func() error {
			own, err := h.Addrs(name, lab.IPv4)
			if err != nil || len(own) == 0 {
				return fmt.Errorf("%s: %s has the addresses %v, %w", when, name, own, err)
			}
			if answer, err := h.Ping(h.t.Context(), lab.From{Addr: own[0].Addr()}, lab.InternetAddr4); err != nil || answer.ISP != h.isps[i].Name() {
				return fmt.Errorf("%s: traffic of %s: %+v, %w", when, name, answer, err)
			}
			return nil
		})
	}
}

func texts(findings []doctor.Finding) string {
	var lines []string
	for _, f := range findings {
		lines = append(lines, fmt.Sprintf("%s %s %q %q: %s; seen %q; fix %q", f.Severity, f.Code, f.Link, f.Object, f.Text, f.Evidence, f.Commands))
	}
	return strings.Join(lines, "\n")
}

// find waits for a finding, and checks that it is found once.
func (h *host) find(code routing.Code, severity routing.Severity, link string, args ...string) doctor.Finding {
	h.t.Helper()
	var found doctor.Finding
	labtest.Eventually(h.t, func() error {
		r := h.doctor(args...)
		i := slices.IndexFunc(r.Findings, func(f doctor.Finding) bool { return f.Code == code && f.Link == link })
		if i < 0 {
			return fmt.Errorf("no %s of %q: %s", code, link, texts(r.Findings))
		}
		if found = r.Findings[i]; found.Severity != severity || len(found.Evidence) == 0 || found.Text == "" {
			return fmt.Errorf("want %s with evidence: %s", severity, texts(r.Findings[i:i+1]))
		}
		same := 0
		for _, f := range r.Findings {
			if f.Text == found.Text {
				same++
			}
		}
		if same > 1 {
			return fmt.Errorf("it is given %d times: %s", same, texts(r.Findings))
		}
		return nil
	})
	return found
}

// fix runs what --fix prints.
func (h *host) fix(code routing.Code, args ...string) {
	h.t.Helper()
	script, err := h.as(0, append([]string{"doctor", "--fix", string(code)}, args...)...)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", code, err, script)
	}
	h.sh(script)
}

// gone waits until a finding is gone.
func (h *host) gone(code routing.Code) {
	h.t.Helper()
	labtest.Eventually(h.t, func() error {
		if r := h.doctor(); len(r.Of(code)) > 0 {
			return fmt.Errorf("%s is still found: %s", code, texts(r.Findings))
		}
		return nil
	})
}

// address is the first address of an interface.
func (h *host) address(device string, f lab.Family) string {
	h.t.Helper()
	all, err := h.Addrs(device, f)
	h.must(err)
	return all[0].Addr().String()
}
