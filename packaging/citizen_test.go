package packaging_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestCitizen checks the files that other programs read, by those programs, as the package installs them.
func TestCitizen(t *testing.T) {
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	run(t, "dpkg-deb", "-x", debs.now, tree)
	metainfo := filepath.Join(tree, "usr/share/metainfo/org.multihomed.multihomed.metainfo.xml")
	run(t, "appstreamcli", "validate", "--no-net", "--pedantic", metainfo)
	version := run(t, "dpkg-deb", "-f", debs.now, "Version")
	upstream, _, _ := strings.Cut(version, "-")
	if text := run(t, "cat", metainfo); !strings.Contains(text, `<release version="`+upstream+`" date="20`) {
		t.Errorf("no release %s in\n%s", upstream, text)
	}
	// It is compiled, and not loaded: this kernel need not have AppArmor.
	profiles := filepath.Join(tree, "etc/apparmor.d/usr.sbin.multihomed")
	parser := []string{"-Q", "-K", "--kernel-features", "/etc/apparmor.d/abi/3.0"}
	run(t, "apparmor_parser", append(parser, profiles)...)
	names := run(t, "apparmor_parser", append(parser, "-N", profiles)...)
	for _, unit := range []string{"multihomed", "multihomed-prober", "multihomed-binder"} {
		if !strings.Contains("\n"+names+"\n", "\n"+unit+"\n") {
			t.Errorf("no profile %s among\n%s", unit, names)
		}
		if text := run(t, "cat", filepath.Join(tree, "usr/lib/systemd/system", unit+".service")); !strings.Contains(text, "\nAppArmorProfile=-"+unit+"\n") {
			t.Errorf("%s.service does not name its profile", unit)
		}
	}
	run(t, "bash", "-n", filepath.Join(tree, "usr/share/bug/multihomed/script"))
	run(t, "/usr/bin/python3", "-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())", filepath.Join(tree, "usr/share/multihomed/sos/multihomed.py"))
	run(t, "diff", "-r", filepath.Join(tree, "usr/share/multihomed/schema"), "../docs/schema", "--exclude=*.go")
}
