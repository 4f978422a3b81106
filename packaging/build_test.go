package packaging_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/machine"
	"multihomed/test/machine/machinetest"
)

// run runs a program that must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTwoBuildsAreEqual builds in another place, at another time, as another user
// would have it.
func TestTwoBuildsAreEqual(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	tree, dist := t.TempDir(), t.TempDir()
	run(t, "sh", "-c", `tar -C .. --exclude=./dist --exclude=./.cache --exclude=./bin -c . | tar -C "$1" -xm`, "sh", tree)
	run(t, "sh", "-c", `umask 077; TZ=Asia/Tokyo LC_ALL=C make -C "$1" release DIST="$2"`, "sh", tree, dist)
	for _, path := range []string{debs.now, debs.rpm, debs.cockpit, debs.cockpitRPM} {
		run(t, "cmp", path, filepath.Join(dist, filepath.Base(path)))
	}
	// The release is of the program that `make build` makes, too.
	run(t, "sh", "-c", `cd "$1" && sha256sum --strict -c SHA256SUMS && test $(wc -l <SHA256SUMS) -eq 5`, "sh", dist)
	sbom, err := only(filepath.Join(dist, "*.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sbom)
	if err != nil {
		t.Fatal(err)
	}
	sum, _, _ := strings.Cut(run(t, "sha256sum", filepath.Join(debs.bin, "multihomed")), " ")
	for _, want := range []string{sum, `"pkg:golang/modernc.org/sqlite@`, `"pkg:golang/std@1.`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the SBOM lacks %s:\n%s", want, text)
		}
	}
}

func TestLintian(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	changes, err := only(filepath.Join(filepath.Dir(debs.now), "*.changes"))
	if err != nil {
		t.Fatal(err)
	}
	// Debian has no bug that asks for the package (ITP) which a first version could close.
	if said := run(t, "lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", "initial-upload-closes-no-bugs", "--tag-display-limit", "0", changes); strings.Contains(said, "W:") || strings.Contains(said, "E:") {
		t.Errorf("lintian says\n%s", said)
	}
	overrides, err := filepath.Glob("debian/*lintian-overrides*")
	if err != nil || len(overrides) > 0 {
		t.Errorf("overrides %v (%v)", overrides, err)
	}
}

// TestTheSameContents: both packages, and `make install`, have the same files, but
// for what each format adds.
func TestTheSameContents(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	plain := func(list string) []string {
		var out []string
		for path := range strings.Lines(list) {
			path = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(path), "."), ".gz")
			// zsh of Fedora knows no directory for packages.
			path = strings.Replace(path, "/zsh/site-functions/", "/zsh/vendor-completions/", 1)
			// Only Debian has reportbug.
			if strings.HasSuffix(path, "/") || strings.HasPrefix(path, "/usr/share/bug/") || strings.HasPrefix(path, "/usr/share/licenses/") ||
				strings.HasPrefix(path, "/usr/share/doc/multihomed/changelog") || path == "/usr/share/doc/multihomed/copyright" || strings.HasPrefix(path, "/usr/share/doc/cockpit-multihomed/") {
				continue
			}
			out = append(out, path)
		}
		slices.Sort(out)
		return out
	}
	inDeb := func(path string) []string {
		return plain(run(t, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -t`, "sh", path))
	}
	inRPM := func(path string) []string {
		return plain(run(t, "sh", "-c", `rpm -qp --qf '[%{FILEMODES:perms} %{FILENAMES}\n]' "$1" | sed -n 's/^[-l][^ ]* //p'`, "sh", path))
	}
	installed := t.TempDir()
	run(t, "make", "-C", "..", "install", "PREFIX=/usr", "DESTDIR="+installed, "BIN="+debs.bin)
	listed := func() []string { return plain(run(t, "sh", "-c", `cd "$1" && find . ! -type d`, "sh", installed)) }
	made := listed()
	deb := inDeb(debs.now)
	for name, have := range map[string][]string{"the rpm": inRPM(debs.rpm), "make install": made} {
		if d := labtest.Difference(deb, have); d != "" || len(have) < 20 {
			t.Errorf("the deb (-) and %s (+):\n%s", name, d)
		}
	}
	run(t, "make", "-C", "..", "install-cockpit", "PREFIX=/usr", "DESTDIR="+installed)
	page := slices.DeleteFunc(listed(), func(path string) bool { return slices.Contains(made, path) })
	for name, have := range map[string][]string{"the rpm": inRPM(debs.cockpitRPM), "the deb": inDeb(debs.cockpit)} {
		if d := labtest.Difference(page, have); d != "" || len(have) < 8 {
			t.Errorf("make install-cockpit (-) and %s of the page (+):\n%s", name, d)
		}
	}
	run(t, "appstreamcli", "validate", "--no-net", filepath.Join(installed, "usr/share/metainfo/org.multihomed.cockpit.metainfo.xml"))
	run(t, "make", "-C", "..", "uninstall", "PREFIX=/usr", "DESTDIR="+installed)
	if left := run(t, "find", installed, "!", "-type", "d"); left != "" {
		t.Errorf("left by make uninstall:\n%s", left)
	}
}

// TestRPM runs the scriptlets of the rpm on what it holds, on a Debian machine: rpm
// itself would look for the packages that Fedora has.
func TestRPM(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true})
	s := &system{t: t, lab: host, Machine: machinetest.Boot(t, machine.Config{Release: machine.Bookworm})}
	tar := filepath.Join(t.TempDir(), "payload.tar")
	run(t, "sh", "-c", `rpm2archive -n - <"$1" >"$2"`, "sh", debs.rpm, tar)
	s.must(s.CopyIn(tar, "/root/payload.tar", 0o600))
	before := s.listing()
	s.run("tar", "-C", "/", "-xf", "/root/payload.tar", "--no-overwrite-dir")
	script := func(tag, argument string) {
		t.Helper()
		text := run(t, "rpm", "-qp", "--qf", "%{"+tag+"}", debs.rpm)
		s.must(s.WriteFile("/root/scriptlet", []byte(text), 0o700))
		s.run("sh", "-e", "/root/scriptlet", argument)
	}
	script("POSTIN", "1")
	s.active()
	if user := s.property("User"); user != "multihomed" {
		t.Errorf("it runs as %q", user)
	}
	script("POSTIN", "2")
	script("POSTUN", "1")
	s.active()
	script("PREUN", "0")
	s.run("sh", "-c", "rm -f $(tar -tf /root/payload.tar | grep -v '/$' | sed 's,^\\./,/,;s,^\\([^/]\\),/\\1,')")
	script("POSTUN", "0")
	if state, err := s.Run(t.Context(), "systemctl", "is-active", "multihomed.service"); err == nil {
		t.Errorf("the service is %s", state)
	}
	left := labtest.Difference(before, s.listing())
	for line := range strings.Lines(left) {
		// The user and its files stay, as with any rpm.
		if !strings.Contains(line, "/etc/passwd") && !strings.Contains(line, "/etc/group") && !strings.Contains(line, "shadow") && !strings.Contains(line, "/var/lib/multihomed") &&
			!strings.Contains(line, "/run/multihomed") && !strings.Contains(line, " 755 ") {
			t.Errorf("left: %s", line)
		}
	}
}

// TestUninstall checks that `make uninstall` leaves nothing, least of all routing that nothing could remove.
func TestUninstall(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true, FastDAD: true})
	s := &system{t: t, lab: host, Machine: machinetest.New(t, machine.Config{Release: machine.Trixie})}
	s.isps = append(s.isps, labtest.NewISP(t, host, lab.DefaultISP(0)))
	s.must(s.PowerOn(t.Context()))
	link := s.links()[0]
	s.run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link)
	run(t, "make", "-C", "..", "install", "DESTDIR="+s.Path("/"), "BIN="+debs.bin)
	s.run("sh", "-ec", "systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload; systemctl enable --now multihomed.socket multihomed.service")
	s.must(s.MoveLink(link))
	s.networks(link)
	recipe := filepath.Join(t.TempDir(), "uninstall")
	run(t, "sh", "-c", `echo "set -e" >"$1"; make --no-print-directory -n -C .. uninstall DESTDIR= >>"$1"`, "sh", recipe)
	s.must(s.CopyIn(recipe, "/root/recipe", 0o700))
	if said := s.run("sh", "/root/recipe"); !strings.Contains(said, "left in place, remove it by hand: /etc/multihomed /var/lib/multihomed") {
		t.Errorf("it says: %s", said)
	}
	if left := s.kernel(); strings.Contains(left, "proto 150") || strings.Contains(left, link+":") && strings.Contains(left, "group 28008") {
		t.Errorf("left in the kernel:\n%s", left)
	}
	if left := s.run("sh", "-c", `find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /var/lib/systemd \) -prune -o -name '*multihome*' ! -path '/var/lib/multihomed*' -print`); left != "" {
		t.Errorf("left by make uninstall:\n%s", left)
	}
	if state, err := s.Run(t.Context(), "systemctl", "is-active", "multihomed.service"); err == nil {
		t.Errorf("the service is %s", state)
	}
}

// TestChroot installs the package where systemd is not running: in an image that
// is being made, or a container.
func TestChroot(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	labtest.NewHost(t, lab.HostConfig{NoBus: true})
	m := machinetest.New(t, machine.Config{Release: machine.Bookworm})
	root := m.Path("/")
	if err := m.CopyIn(debs.now, "/root/multihomed.deb", 0o644); err != nil {
		t.Fatal(err)
	}
	chroot := func(command string) string {
		t.Helper()
		return run(t, "chroot", root, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", command)
	}
	// sos is there, as far as the package can see, then goes, and comes again.
	const plugins = "/usr/lib/python3/dist-packages/sos/report/plugins"
	const triggered = "dpkg-trigger --by-package=dpkg " + plugins + " && dpkg --configure --pending && "
	chroot("mkdir -p " + plugins + " && touch " + plugins + "/__init__.py")
	chroot("apt-get install -y /root/multihomed.deb && apt-get install -y --reinstall /root/multihomed.deb")
	chroot("test -s " + plugins + "/multihomed.py && rm " + plugins + "/__init__.py && " + triggered + "test ! -e /usr/lib/python3/dist-packages/sos")
	chroot("mkdir -p " + plugins + " && touch " + plugins + "/__init__.py && " + triggered + "test -s " + plugins + "/multihomed.py")
	for _, link := range []string{"multi-user.target.wants/multihomed.service", "sockets.target.wants/multihomed.socket"} {
		if _, err := os.Lstat(filepath.Join(root, "etc/systemd/system", link)); err != nil {
			t.Errorf("it is not enabled: %v", err)
		}
	}
	chroot("apt-get remove -y multihomed && apt-get install -y /root/multihomed.deb && apt-get purge -y multihomed")
	if left := chroot("find / -xdev -path /proc -prune -o -name '*multihomed*' ! -path '/root/*' -print; getent passwd multihomed || true"); left != "" {
		t.Errorf("left by purge:\n%s", left)
	}
}
