package unitfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"multihomed/internal/unitfile"
)

// TestRead: what systemctl leaves on disk, and what a host without systemd has.
func TestRead(t *testing.T) {
	const (
		unit  = "/usr/lib/systemd/system/multihomed.service"
		wants = "/etc/systemd/system/multi-user.target.wants/multihomed.service"
		mask  = "/etc/systemd/system/multihomed.service"
		text  = "[Unit]\n"
	)
	for name, c := range map[string]struct {
		files map[string]string
		links map[string]string
		want  unitfile.State
	}{
		"nothing installed":     {want: unitfile.Unknown},
		"enabled":               {map[string]string{unit: text}, map[string]string{wants: unit}, unitfile.Enabled},
		"enabled for a boot":    {map[string]string{unit: text}, map[string]string{"/run/systemd/system/multi-user.target.wants/multihomed.service": unit}, unitfile.Enabled},
		"by the vendor":         {map[string]string{unit: text}, map[string]string{"/usr/lib/systemd/system/multi-user.target.wants/multihomed.service": unit}, unitfile.Enabled},
		"required":              {map[string]string{unit: text}, map[string]string{"/etc/systemd/system/x.target.requires/multihomed.service": unit}, unitfile.Enabled},
		"disabled":              {map[string]string{unit: text}, nil, unitfile.Disabled},
		"old place, disabled":   {map[string]string{"/lib/systemd/system/multihomed.service": text}, nil, unitfile.Disabled},
		"own unit, enabled":     {map[string]string{mask: text}, map[string]string{wants: mask}, unitfile.Enabled},
		"another is enabled":    {map[string]string{unit: text}, map[string]string{"/etc/systemd/system/sockets.target.wants/multihomed.socket": "x"}, unitfile.Disabled},
		"masked":                {map[string]string{unit: text}, map[string]string{mask: "/dev/null", wants: unit}, unitfile.Masked},
		"masked for a boot":     {map[string]string{unit: text}, map[string]string{"/run/systemd/system/multihomed.service": "/dev/null", wants: unit}, unitfile.Masked},
		"masked by hand":        {map[string]string{unit: text, mask: ""}, map[string]string{wants: unit}, unitfile.Masked},
		"a relative link":       {map[string]string{unit: text}, map[string]string{mask: "../../../dev/null"}, unitfile.Masked},
		"masked, not installed": {nil, map[string]string{mask: "/dev/null"}, unitfile.Masked},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			place := func(path string) string {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				return path
			}
			place("/run/systemd/system/x")
			for path, content := range c.files {
				if err := os.WriteFile(place(path), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for path, to := range c.links {
				if err := os.Symlink(to, place(path)); err != nil {
					t.Fatal(err)
				}
			}
			have := unitfile.Read(os.DirFS(root), unitfile.Service)
			if have != c.want {
				t.Errorf("it is %v, want %v", have, c.want)
			}
			start := unitfile.Enable
			switch {
			case name == "masked for a boot":
				start = "systemctl unmask --runtime multihomed && " + start
			case have == unitfile.Masked:
				start = "systemctl unmask multihomed && " + start
			}
			if text := unitfile.Start(os.DirFS(root)); text != start {
				t.Errorf("to start it: %s, want %s", text, start)
			}
			if have.Unwanted() != (c.want == unitfile.Disabled || c.want == unitfile.Masked) {
				t.Errorf("unwanted: %v", have.Unwanted())
			}
		})
	}
	// Without systemd, a unit that nobody enabled says nothing.
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/lib/systemd/system"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, unit), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if have := unitfile.Read(os.DirFS(root), unitfile.Service); have != unitfile.Unknown {
		t.Errorf("without systemd: %v", have)
	}
}
