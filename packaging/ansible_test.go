package packaging_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"multihomed/test/lab/labtest"
	"multihomed/test/machine"
)

// managed is a release with what Ansible needs on both sides, and with polkit, which NetworkManager recommends.
func managed(release string) string {
	return machine.With(release, "ansible-core", "python3-apt", "polkitd")
}

// A served repository is one of `make repository`, which a machine serves to itself.
const servedAt = "http://127.0.0.1:8000"

// repository makes the packages a repository, signed by a new key, and returns its directory.
func repository(t *testing.T) string {
	t.Helper()
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, whose names are too long for the socket of gpg-agent.
	home, err := os.MkdirTemp("", "gpg") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GNUPGHOME", home)
	defer func() { run(t, "sh", "-c", `gpgconf --kill all; rm -r "$1"`, "sh", home) }()
	dist := t.TempDir()
	run(t, "cp", debs.now, debs.cockpit, dist)
	if out, err := command(t.Context(), "env", "PATH=/nonexistent", "/bin/sh", "apt-repository", dist, "nobody"); err == nil || !strings.Contains(err.Error(), "sudo apt install apt-utils") {
		t.Errorf("without tools: %v, %s", err, out)
	}
	makes := func(arguments ...string) (string, error) {
		return command(t.Context(), "make", append([]string{"--no-print-directory", "-C", "..", "repository", "DIST=" + dist, "APT_URL=" + servedAt}, arguments...)...)
	}
	for _, c := range []struct{ key, want string }{{"", "gpg --quick-generate-key"}, {"nobody@example.org", "gpg has no secret key nobody@example.org"}} {
		if out, err := makes("GPG_KEY=" + c.key); err == nil || !strings.Contains(out+err.Error(), c.want) {
			t.Errorf("with the key %q: %v; want %s", c.key, err, c.want)
		}
	}
	run(t, "gpg", "--batch", "--passphrase", "", "--quick-generate-key", "archive@example.org", "ed25519", "sign", "never")
	sums := func() string {
		t.Helper()
		if _, err := makes("GPG_KEY=archive@example.org"); err != nil {
			t.Fatal(err)
		}
		return run(t, "sh", "-c", `cd "$1/apt" && find . -type f ! -name 'InRelease' ! -name Release.gpg -exec sha256sum {} + | sort -k 2`, "sh", dist)
	}
	if first, second := sums(), sums(); first != second {
		t.Errorf("two repositories of equal packages differ:\n%s\n%s", first, second)
	}
	index := run(t, "sh", "-c", `grep -h ^Package: "$1"/apt/dists/stable/main/binary-*/Packages | sort`, "sh", dist)
	if index != "Package: cockpit-multihomed\nPackage: multihomed" {
		t.Errorf("the repository has %s", index)
	}
	run(t, "gpg", "--batch", "--passphrase", "", "--quick-generate-key", "other@example.org", "ed25519", "sign", "never")
	run(t, "sh", "-c", `gpg --armor --export other@example.org >"$1"`, "sh", filepath.Join(dist, "apt", "other.asc"))
	return filepath.Join(dist, "apt")
}

// TestRoleLint has ansible-lint find nothing.
func TestRoleLint(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	run(t, "ansible-lint", "--offline", "--nocolor", "--strict", "-p", "ansible/roles/multihomed")
}

// TestRepositoryAndRole installs multihomed from a signed repository by the Ansible role, on both releases of Debian.
func TestRepositoryAndRole(t *testing.T) {
	served := repository(t)
	for _, release := range []string{machine.Bookworm, machine.Trixie} {
		t.Run(release, func(t *testing.T) {
			s, _ := booted(t, managed(release))
			for _, link := range s.links() {
				s.run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link)
				s.must(s.MoveLink(link))
			}
			archive := filepath.Join(t.TempDir(), "apt.tar")
			run(t, "sh", "-c", `tar -C "$1" -cf "$2" apt && tar -C ansible -rf "$2" roles`, "sh", filepath.Dir(served), archive)
			s.must(s.CopyIn(archive, "/srv/apt.tar", 0o644))
			// Debian's own repository cannot be reached.
			s.run("sh", "-ec", `tar -C /srv --no-same-owner -xf /srv/apt.tar; mkdir -p /etc/ansible; mv /srv/roles /etc/ansible; rm -rf /etc/apt/sources.list*; mkdir /etc/apt/sources.list.d`)
			web, err := s.Start("python3", "-u", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "/srv/apt")
			s.must(err)
			s.must(web.WaitOutput(t.Context(), "Serving"))
			s.step("repository", s.refusals)
			s.step("role", func() { s.role(release == machine.Bookworm) })
		})
	}
}

// refusals are of apt: a repository of another key, and a changed package.
func (s *system) refusals() {
	const trust = "install -D -m 644 /srv/apt/%s /etc/apt/keyrings/multihomed-archive-keyring.asc && cp /srv/apt/multihomed.sources /etc/apt/sources.list.d/ && apt-get -q update"
	s.fail("is not signed", fmt.Sprintf(trust, "other.asc"))
	s.fail("Unable to locate package", "apt-get install -qy multihomed")
	s.run("sh", "-c", fmt.Sprintf(trust, "multihomed-archive-keyring.asc"))
	const pool = "cd /srv/apt/pool/main/m/multihomed && "
	s.run("sh", "-c", pool+"mkdir /srv/good && cp -p *.deb /srv/good && for f in *.deb; do printf x | dd of=$f bs=1 seek=5000 conv=notrunc; done")
	s.fail("Hash Sum mismatch", "apt-get install -qy multihomed")
	s.run("sh", "-c", pool+"mv /srv/good/*.deb . && rm -r /etc/apt/keyrings/* /etc/apt/sources.list.d/* /var/lib/apt/lists/*_*")
}

// fail runs a command that must fail, with a reason.
func (s *system) fail(reason, command string) {
	s.t.Helper()
	if out, err := s.Run(s.t.Context(), "sh", "-c", command); err == nil || !strings.Contains(out, reason) {
		s.t.Errorf("%s: %v, %s; want %q", command, err, out, reason)
	}
}

type variables map[string]any

// play runs the role, and returns what Ansible says and how many tasks changed something.
func (s *system) play(v variables, options ...string) (out string, changed string, err error) {
	s.t.Helper()
	all := variables{"ansible_python_interpreter": "/usr/bin/python3", "multihomed_repository": servedAt, "multihomed_repository_key": "/srv/apt/multihomed-archive-keyring.asc"}
	maps.Copy(all, v)
	text, err := json.Marshal([]any{map[string]any{"hosts": "localhost", "connection": "local", "gather_facts": false, "roles": []any{"multihomed"}, "vars": all}})
	s.must(err)
	s.must(s.WriteFile("/root/site.yml", text, 0o600))
	out, err = s.Run(s.t.Context(), append([]string{"env", "ANSIBLE_PIPELINING=1", "ansible-playbook", "-i", "localhost,", "/root/site.yml"}, options...)...)
	if found := regexp.MustCompile(` changed=(\d+) `).FindStringSubmatch(out); found != nil {
		changed = found[1]
	}
	if strings.Contains(out, "[DEPRECATION") || strings.Contains(out, "[WARNING]") {
		s.t.Errorf("Ansible warns:\n%s", out)
	}
	return out, changed, err
}

// given are the switches as a command line or an inventory gives them: "false" is a text that is not empty.
var given = variables{"multihomed_off": "false", "multihomed_enabled": "true", "multihomed_metrics": "true", "multihomed_cockpit": "false", "multihomed_doctor": "false"}

// plays runs the role twice: the second run changes nothing.
func (s *system) plays(v variables) {
	s.t.Helper()
	if out, changed, err := s.play(v); err != nil || changed == "0" {
		s.t.Fatalf("%v, changed %q:\n%s", err, changed, out)
	}
	if out, changed, err := s.play(v); err != nil || changed != "0" {
		s.t.Fatalf("again: %v, changed %q:\n%s", err, changed, out)
	}
}

// configuration is where the role writes it.
const configuration = "/etc/multihomed/multihomed.toml"

// role goes through the life of the role; all says that changes are tried, too.
func (s *system) role(all bool) {
	before := s.listing()
	if all {
		if out, _, err := s.play(variables{"multihomed_config": variables{"log_level": "info"}}, "--check", "--diff"); err != nil {
			s.t.Fatalf("%v:\n%s", err, out)
		}
		if d := labtest.Difference(before, s.listing()); d != "" {
			s.t.Errorf("changed by --check:\n%s", d)
		}
	}
	first := variables{"multihomed_config": variables{
		"log_level": "info", "failover": variables{"enabled": false, "targets": []string{"192.0.2.1", "2001:db8::1"}},
		"link": []any{variables{"interface": "none0", "role": "local"}, variables{"profile": "a \"quoted\" é", "last_resort": true}},
	}}
	maps.Copy(first, given)
	s.plays(first)
	s.run("systemctl", "is-active", "multihomed-metrics.socket")
	s.active()
	s.networks(s.links()...)
	if all {
		s.changes()
	}
	// That nothing is left to remove is seen once.
	if purged := (variables{"multihomed_state": "purged"}); all {
		s.plays(purged)
	} else if out, _, err := s.play(purged); err != nil {
		s.t.Fatalf("%v:\n%s", err, out)
	}
	if left := s.kernel(); strings.Contains(left, "proto 150") {
		s.t.Errorf("left in the kernel:\n%s", left)
	}
	if d := labtest.Difference(before, s.listing()); d != "" {
		s.t.Errorf("left by purged (+):\n%s", d)
	}
}

// changes are of a configuration that stands.
func (s *system) changes() {
	pid := s.property("MainPID")
	group := variables{"multihomed_config": variables{"uplink_group": 28010}}
	text := s.run("cat", configuration)
	if out, changed, err := s.play(group, "--check", "--diff"); err != nil || changed == "0" || !strings.Contains(out, "+uplink_group = 28010") {
		s.t.Errorf("%v:\n%s", err, out)
	}
	if out, _, err := s.play(variables{"multihomed_config": "uplink_grup = 5"}); err == nil || !strings.Contains(out, "uplink_grup") {
		s.t.Errorf("a typo: %v:\n%s", err, out)
	}
	if now := s.run("cat", configuration); now != text {
		s.t.Errorf("after a check and a typo, the configuration is\n%s", now)
	}
	if out, _, err := s.play(group); err != nil {
		s.t.Fatalf("%v:\n%s", err, out)
	}
	s.eventually(func() error {
		if links := s.run("ip", "-o", "link", "show", "group", "28010"); strings.Count(links, "\n")+1 != len(s.links()) {
			return fmt.Errorf("uplinks in the new group: %s", links)
		}
		return nil
	})
	if now := s.property("MainPID"); now != pid {
		s.t.Errorf("a new group is another process, %s and not %s", now, pid)
	}
	s.run("install", "-d", "-o", "multihomed", "-g", "multihomed", "/var/lib/multihomed/other")
	if out, _, err := s.play(variables{"multihomed_config": "state_dir = \"/var/lib/multihomed/other\""}); err != nil || s.property("MainPID") == pid {
		s.t.Errorf("what needs a restart: %v, process %s:\n%s", err, s.property("MainPID"), out)
	}
	if out, _, err := s.play(variables{"multihomed_off": true}); err != nil {
		s.t.Fatalf("%v:\n%s", err, out)
	}
	s.fail("No such file", "cat "+configuration)
	if rules := s.run("ip", "-N", "rule"); strings.Contains(rules, "proto 150") {
		s.t.Errorf("switched off, there are rules:\n%s", rules)
	}
	// A check says what a run would do, and does nothing.
	for _, c := range []struct {
		v       variables
		changed string
	}{{variables{"multihomed_off": true}, "0"}, {variables{"multihomed_off": false}, "1"}} {
		if out, changed, err := s.play(c.v, "--check"); err != nil || changed != c.changed {
			s.t.Errorf("a check: %v, changed %q and not %s:\n%s", err, changed, c.changed, out)
		}
	}
	if out, _ := s.Run(s.t.Context(), "multihomectl", "status"); !strings.Contains(out, "multihomectl on") {
		s.t.Errorf("after a check it is not off:\n%s", out)
	}
}
